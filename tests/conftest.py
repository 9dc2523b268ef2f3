import gc
from collections.abc import Iterator

import pytest
import torch

from tests.helpers.processes import Pool


def pytest_collection_finish() -> None:
    """The garbage collector walks half a million objects of modules time and again otherwise, a fifth of the time of
    tests that make many small objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
