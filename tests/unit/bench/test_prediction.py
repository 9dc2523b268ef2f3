"""What the simulator says stands beside what was measured; engines' own time is taken from rows that calibrate."""

from pathlib import Path

import pytest

from counterflow.bench.contender import Contender
from counterflow.bench.entrants import asleep, pipelines
from counterflow.bench.prediction import all_beside, overhead, predict
from counterflow.bench.row import StepMetrics
from counterflow.bench.sleeping import Sleep

CONF = Path(__file__).parents[3] / "conf"
SLEEP = Sleep(0.1, 0.2, 0.0, batch=96, width=32)


def contender(schedule: str, microbatches: int = 1, ranks: int = 4) -> Contender:
    return asleep(CONF, Path(), schedule, SLEEP, ranks, batches=8, microbatches=microbatches)


def row(entrant: Contender, extra: float) -> StepMetrics:
    """As if every action took ``extra`` seconds more than its sleep."""
    seconds = predict(entrant, overhead=extra).seconds_per_batch
    return StepMetrics(name=entrant.name, ranks=entrant.ranks, samples_per_second=SLEEP.batch / seconds)


def test_a_pipeline_takes_its_bubble() -> None:
    assert predict(contender("gpipe", 8)).seconds_per_batch == pytest.approx(0.3 * 11 / 8)
    assert predict(contender("free")).seconds_per_batch == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b", "zbv", "free"])
def test_time_beside_the_stages_is_found_again(schedule: str) -> None:
    entrant = contender(schedule, 8)
    assert overhead(row(entrant, 0.002), entrant) == pytest.approx(0.002, rel=0.05)


def test_one_row_calibrates_all_of_its_engine() -> None:
    entrants = [contender("free"), contender("gpipe", 4), contender("1f1b", 4), contender("1f1b", 16)]
    rows = [row(entrant, 0.003) for entrant in entrants]
    found = all_beside(rows, entrants, ["1F1B m=4"])
    errors = [each.more["prediction_error"] for each in found]
    assert errors[0] == pytest.approx(0.009 / 0.3, rel=0.1)  # the free engine was not calibrated
    assert errors[1:] == pytest.approx([0, 0, 0], abs=0.002)
    assert [each.more.get("calibrates_ms") is not None for each in found] == [False, False, True, False]
    assert all_beside(rows, entrants, ["BLL"])[0].more["prediction_error"] == pytest.approx(0, abs=0.002)


def test_the_share_of_the_ideal_counts_both_stages_of_a_rank() -> None:
    entrants = [contender("interleaved1f1b", 8)]
    (found,) = all_beside([StepMetrics(name="x", ranks=4, samples_per_second=96 / 0.3)], entrants, [])
    assert found.more["share_of_ideal"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ranks", "microbatches", "fit"),
    [(4, 2, ["gpipe"]), (4, 4, ["gpipe", "1f1b", "interleaved1f1b"]), (4, 6, ["gpipe", "1f1b"]), (2, 4, 4)],
)
def test_which_pipelines_run(ranks: int, microbatches: int, fit: list[str] | int) -> None:
    found = pipelines(ranks, microbatches)
    assert found == fit if isinstance(fit, list) else len(found) == fit
