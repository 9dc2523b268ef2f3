"""Cost of a trace: the same training with and without one, side by side."""

from pathlib import Path
from statistics import median

import pytest

from counterflow.bench.case import BenchmarkCase, train, train_traced
from counterflow.bench.cases import CaseFactory
from counterflow.bench.sleeping import Sleep
from counterflow.bench.workers import WorkerSettings, run_workers

ROUNDS = 7
BATCHES = 1500
STAGE = 0.010
"""Seconds of the batch of which a trace may take `MOST`: as many spans are recorded of a longer one."""
MOST = 0.02


def measure(case: BenchmarkCase, traced: bool) -> tuple[float, float]:
    """Seconds a batch, by the clock and of the processors of one rank."""
    settings = WorkerSettings(timeout=120, pinned=True)
    if traced:
        ranks = [measurement for measurement, _ in run_workers(settings, 2, train_traced, case)]
    else:
        ranks = run_workers(settings, 2, train, case)
    wall = max(rank.seconds / rank.batches for rank in ranks)
    return wall, sum(rank.cpu_seconds for rank in ranks) / 2 / BATCHES


@pytest.mark.timeout(900)
def test_a_trace_costs_next_to_nothing(tmp_path: Path) -> None:
    """Of batches that take no time, so that nothing hides what their spans take."""
    factory = CaseFactory(tmp_path)
    factory.write_images(64, pixels=4, channels=1)
    nothing = Sleep(forward=0.0, backward=0.0, update=0.0, batch=32, width=32)
    case = factory.sleeping("free", nothing, 2, BATCHES)
    added, without = [], []
    for i in range(ROUNDS):
        pair = {traced: measure(case, traced) for traced in ((True, False) if i % 2 else (False, True))}
        added.append(tuple(a - b for a, b in zip(pair[True], pair[False], strict=True)))
        without.append(pair[False])
    for name, seconds, base in zip(
        ("by the clock", "of a processor"), zip(*added, strict=True), zip(*without, strict=True), strict=True
    ):
        print(
            f"a trace adds {1e6 * median(seconds):.0f} us {name} to a batch of {1e6 * median(base):.0f} us, "
            f"{median(seconds) / STAGE:.2%} of a batch of 10 ms (rounds: {[round(1e6 * s) for s in sorted(seconds)]})"
        )
        assert median(seconds) < MOST * STAGE
