"""Cost of checkpoints, as a ratio of runs side by side."""

import statistics
from pathlib import Path

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

MODEL = (
    "model=cnn", "model.channels=[64,64,64,64,64,64,64,64]", "model.strides=[1,1,1,1,1,1,1,1]", "blocks=2",
    "train.batch_size=128", "train.steps=200", "train.evaluate_every=0", "train.epochs=100",
)  # fmt: skip


@pytest.mark.timeout(1800)
def test_a_checkpoint_every_50_batches_costs_less_than_3_percent(pool: Pool, tmp_path: Path) -> None:
    rates: dict[int, list[float]] = {0: [], 50: []}
    for repeat in range(6):
        for every in rates if repeat % 2 else reversed(rates):
            summary = summary_of(pool, 2, *MODEL, f"checkpoint.every={every}", directory=tmp_path / f"{repeat}-{every}")
            if repeat:  # the first is a warm-up
                rates[every].append(summary["samples_per_second"])
    without, with_checkpoints = (statistics.median(rates[every]) for every in (0, 50))
    print(f"samples/s without {rates[0]}, with {rates[50]}, ratio of medians {with_checkpoints / without:.4f}")
    assert with_checkpoints > 0.97 * without
