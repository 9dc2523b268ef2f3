"""What a trace costs: the same training with and without one, side by side."""

from pathlib import Path
from statistics import median

import pytest
from counterflow.bench.contender import Contender, Reading, trace, train
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import asleep, noise

from counterflow.bench.sleeping import Sleep

CONF = Path(__file__).parents[2] / "conf"
ROUNDS = 7
BATCHES = 1500
STAGE = 0.010
"""Seconds of the batch of which a trace may take `MOST`: as many spans are recorded of a longer one."""
MOST = 0.02


def measure(contender: Contender, traced: bool) -> tuple[float, float]:
    """Seconds a batch, by the clock and of the processors of one rank."""
    setting = Setting(timeout=120, pinned=True)
    readings: list[Reading]
    if traced:
        readings = [reading for reading, _ in run(setting, 2, trace, contender)]
    else:
        readings = list(run(setting, 2, train, contender))
    wall = max(reading.lap.seconds / reading.lap.batches for reading in readings)
    return wall, sum(reading.cpu_seconds for reading in readings) / 2 / BATCHES


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trace_costs_next_to_nothing(tmp_path: Path) -> None:
    """Of batches that take no time, so that nothing hides what their spans take."""
    noise(tmp_path, 64, pixels=4, channels=1)
    nothing = Sleep(forward=0.0, backward=0.0, update=0.0, batch=32, width=32)
    contender = asleep(CONF, tmp_path, "free", nothing, 2, BATCHES)
    added, without = [], []
    for i in range(ROUNDS):
        pair = {traced: measure(contender, traced) for traced in ((True, False) if i % 2 else (False, True))}
        added.append(tuple(a - b for a, b in zip(pair[True], pair[False], strict=True)))
        without.append(pair[False])
    for what, seconds, base in zip(
        ("by the clock", "of a processor"), zip(*added, strict=True), zip(*without, strict=True), strict=True
    ):
        print(
            f"a trace adds {1e6 * median(seconds):.0f} us {what} to a batch of {1e6 * median(base):.0f} us, "
            f"{median(seconds) / STAGE:.2%} of a batch of 10 ms (rounds: {[round(1e6 * s) for s in sorted(seconds)]})"
        )
        assert median(seconds) < MOST * STAGE
