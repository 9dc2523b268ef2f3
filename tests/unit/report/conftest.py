from pathlib import Path

import pytest

from tests.helpers.finished_runs import MakeRun, run_maker


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return run_maker(tmp_path)
