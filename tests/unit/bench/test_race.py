"""Rates, ratios and rows from what ranks read, and the order in which contenders run."""

from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.bench import race as races
from counterflow.bench.contender import Contender, Reading, train
from counterflow.bench.crew import Setting
from counterflow.bench.race import Measured, race, ratio, rows
from counterflow.bench.stopwatch import Lap, Stopwatch
from counterflow.cli.hydra_app import load_config
from counterflow.engine.stage import WaitTimes

CONF = Path(__file__).parents[3] / "conf"


def reading(seconds: float, batches: int = 10, wait: float = 0.0) -> Reading:
    return Reading(Lap(seconds, batches, wait, 0.0), 1.0, 1000, None, [1])


def measured(*seconds: float) -> Measured:
    return Measured([reading(each) for each in seconds], batch=8)


def contender(name: str, batch: int = 8) -> Contender:
    config = load_config(CONF, [f"train.batch_size={batch}"])
    return Contender(name, 2, config, batches=10, warm=2, task=train)


def test_the_slowest_rank_sets_the_rate() -> None:
    assert measured(1.0, 2.0).rate == pytest.approx(8 * 10 / 2.0)


def test_waits_are_a_mean_over_ranks() -> None:
    one = Measured([reading(2.0, wait=1.0), reading(4.0, wait=1.0)], batch=8)
    assert one.wait == pytest.approx((0.5 + 0.25) / 2)


def test_ratios_are_medians_within_rounds() -> None:
    own, other = [measured(1.0), measured(4.0), measured(1.0)], [measured(2.0), measured(4.0), measured(3.0)]
    assert ratio(own, other) == pytest.approx(2.0)


def test_rows() -> None:
    contenders = [contender("a"), replace(contender("b"), microbatches=4)]
    found = rows(contenders, {"a": [measured(1.0), measured(2.0)], "b": [measured(2.0), measured(2.0)]}, "b")
    assert [row.name for row in found] == ["a", "b"]
    assert found[0].samples_per_second == pytest.approx(60)
    assert (found[0].lowest, found[0].highest) == pytest.approx((40, 80))
    assert found[0].ratio_to_baseline == pytest.approx(1.5)
    assert found[1].ratio_to_baseline == 1
    assert (found[0].microbatches, found[1].microbatches) == (None, 4)
    assert found[0].repeats == 2


def test_every_other_round_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def run(setting: Setting, ranks: int, task: object, entrant: Contender) -> list[Reading]:
        order.append(entrant.name)
        return [reading(1.0)] * ranks

    monkeypatch.setattr(races, "run", run)
    told: list[str] = []
    found = race([contender(name) for name in "abc"], 3, lambda _: Setting(10), told.append)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(told) == 9


def test_a_lap_leaves_out_what_came_before() -> None:
    waits = WaitTimes()
    watch = Stopwatch(waits, first=2, batches=5)
    for n in range(5):
        waits.receive += 1.0
        waits.send += 0.5
        watch.on_step(1, n, {})
    lap = watch.lap()
    assert (lap.batches, lap.receive_wait, lap.send_wait) == (3, 3.0, 1.5)
    assert 0 < lap.seconds < 1
