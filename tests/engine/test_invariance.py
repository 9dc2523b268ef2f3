"""Section 2 of the design: no timing and no placement changes a single bit of the result."""

from functools import cache

import pytest

from processes import Pool
from runs import summary_of

MODELS = {
    "mlp with dropout and batch norm": ("model.dropout=0.2", "model.norm=batch"),
    "cnn with dropout": ("model=cnn", "~model.width", "model.channels=[4,4,6,6]", "model.strides=[1,2,1,1]", "model.dropout=0.1"),
}


@pytest.fixture(scope="module")
def reference(pool: Pool):  # noqa: ANN201
    """The fingerprint of one process."""
    return cache(lambda *overrides: summary_of(pool, 1, *overrides)["fingerprint"])


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_change_nothing(pool: Pool, reference, ranks: int, lag: int) -> None:
    overrides = (*MODELS["mlp with dropout and batch norm"], f"engine.lag={lag}")
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)
