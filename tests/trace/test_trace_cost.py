"""What a trace costs: the same training with and without one, side by side."""

from pathlib import Path
from statistics import median

import pytest

from counterflow.bench.contender import Contender, Reading, trace, train
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import awake, noise

CONF = Path(__file__).parents[2] / "conf"
ROUNDS = 7
MOST = 0.02
NOISE = 0.05
"""What single runs of one thing differ by on the machine that this was written on."""


def rate(readings: list[Reading]) -> float:
    return min(reading.lap.batches / reading.lap.seconds for reading in readings)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trace_costs_next_to_nothing(tmp_path: Path) -> None:
    noise(tmp_path, 256, pixels=16, channels=3)
    options = ["algorithm=bll", "blocks=2", "model=cnn", f"model.channels={[32] * 8}", f"model.strides={[1] * 8}"]
    contender: Contender = awake(CONF, tmp_path, "BLL", 2, 40, 5, 64, options)
    setting = Setting(timeout=120, pinned=True)
    ratios = []
    for i in range(ROUNDS):
        pair = {}
        for traced in (True, False) if i % 2 else (False, True):
            if traced:
                readings = [reading for reading, _ in run(setting, 2, trace, contender)]
            else:
                readings = run(setting, 2, train, contender)
            pair[traced] = rate(readings)
        ratios.append(pair[True] / pair[False])
    print(f"rates with a trace over those without: median {median(ratios):.4f} of {sorted(ratios)}")
    assert median(ratios) > 1 - MOST - NOISE
