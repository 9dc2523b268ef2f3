"""Predictions beside measurements, and the engine's overhead estimated from calibrating results."""

from functools import cache
from pathlib import Path

import pytest

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.cases import CaseFactory, valid_schedules
from counterflow.bench.results import CaseResult, estimate_overhead, predict_seconds, with_predictions
from counterflow.bench.sleeping import Sleep

SLEEP = Sleep(0.1, 0.2, 0.0, batch=96, width=32)


@cache
def sleeping(schedule: str, microbatches: int = 1, ranks: int = 4) -> BenchmarkCase:
    return CaseFactory(Path()).sleeping(schedule, SLEEP, ranks, batches=8, microbatches=microbatches)


def result(case: BenchmarkCase, overhead: float) -> CaseResult:
    """The result if every action took ``overhead`` seconds more than its sleep."""
    seconds = predict_seconds(case, overhead=overhead)
    return CaseResult(name=case.name, ranks=case.ranks, samples_per_second=SLEEP.batch / seconds)


def test_a_pipeline_takes_its_bubble() -> None:
    assert predict_seconds(sleeping("gpipe", 8)) == pytest.approx(0.3 * 11 / 8)
    assert predict_seconds(sleeping("free")) == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b", "zbv", "free"])
def test_the_overhead_is_estimated_from_a_result(schedule: str) -> None:
    case = sleeping(schedule, 8)
    assert estimate_overhead(result(case, 0.002), case) == pytest.approx(0.002, rel=0.05)


def test_one_result_calibrates_all_of_its_engine() -> None:
    cases = [sleeping("free"), sleeping("gpipe", 4), sleeping("1f1b", 4), sleeping("1f1b", 16)]
    results = [result(case, 0.003) for case in cases]
    predicted = with_predictions(results, cases, ["1F1B m=4"])
    errors = [each.extra["prediction_error"] for each in predicted]
    assert errors[0] == pytest.approx(0.009 / 0.3, rel=0.1)  # the free engine was not calibrated
    assert errors[1:] == pytest.approx([0, 0, 0], abs=0.002)
    assert [each.extra.get("calibrates_ms") is not None for each in predicted] == [False, False, True, False]
    assert with_predictions(results, cases, ["BLL"])[0].extra["prediction_error"] == pytest.approx(0, abs=0.002)


def test_the_share_of_the_ideal_counts_both_stages_of_a_rank() -> None:
    cases = [sleeping("interleaved1f1b", 8)]
    (predicted,) = with_predictions([CaseResult(name="x", ranks=4, samples_per_second=96 / 0.3)], cases, [])
    assert predicted.extra["share_of_ideal"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ranks", "microbatches", "fit"),
    [(4, 2, ["gpipe"]), (4, 4, ["gpipe", "1f1b", "interleaved1f1b"]), (4, 6, ["gpipe", "1f1b"]), (2, 4, 4)],
)
def test_valid_schedules(ranks: int, microbatches: int, fit: list[str] | int) -> None:
    valid = valid_schedules(ranks, microbatches)
    assert valid == fit if isinstance(fit, list) else len(valid) == fit
