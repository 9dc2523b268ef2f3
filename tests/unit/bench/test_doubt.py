"""Rows that say nothing about a schedule: they count for no ratio and no goal, and the table says why."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.bench.case import BenchmarkCase, RankMeasurement
from counterflow.bench.cases import CaseFactory
from counterflow.bench.results import (
    CaseResult,
    Goal,
    RoundMeasurement,
    SuiteResult,
    case_results,
    goal_lines,
    predict_seconds,
    with_predictions,
)
from counterflow.bench.sleeping import Sleep

SLEEP = Sleep(0.1, 0.2, 0.0, batch=96, width=32)
CORES = len(os.sched_getaffinity(0))


def case(schedule: str, microbatches: int = 1) -> BenchmarkCase:
    return CaseFactory(Path()).sleeping(schedule, SLEEP, 4, batches=8, microbatches=microbatches)


def measured(cases: Sequence[BenchmarkCase], slower: float, busy: float) -> list[CaseResult]:
    """Results of ``cases``, the first ``slower`` than predicted, whose ranks keep ``busy`` of all processors busy."""
    rounds = {}
    for number, one in enumerate(cases):
        seconds = 5 * predict_seconds(one) * (slower if number == 0 else 1.0)
        used = busy * CORES * seconds / 4 if number == 0 else 0.0
        ranks = [RankMeasurement(seconds, 5, 0.0, 0.0, 0.0, 1, None, [1], used) for _ in range(4)]
        rounds[one.name] = [RoundMeasurement(ranks, SLEEP.batch)]
    return with_predictions(case_results(cases, rounds, cases[0].name), cases)


CASES = [case("1f1b", 8), case("free"), case("gpipe", 4)]


@pytest.mark.parametrize(
    ("slower", "busy", "doubt"),
    [
        (1.0, 0.5, ""),
        (1.08, 0.5, ""),
        (2.4, 0.5, "+140% off its prediction"),
        (0.8, 0.5, "-20% off its prediction"),
        (1.0, 0.95, f"limited by this machine's {CORES} cores"),
        (2.4, 0.95, f"limited by this machine's {CORES} cores"),
    ],
)
def test_a_row_in_doubt_counts_for_no_ratio_and_no_goal(slower: float, busy: float, doubt: str) -> None:
    first, bll, gpipe = results = measured(CASES, slower, busy)
    assert (first.doubt, bll.doubt, gpipe.doubt) == (doubt, "", "")
    assert [row.ratio_to_baseline is None for row in results] == [bool(doubt)] * 3, "all ratios are to the first"
    goal = Goal.of("BLL over 1F1B", 1.1, bll.ratio_to_baseline, [bll, first])
    suite = SuiteResult("emulated", {}, results, [goal, Goal.of("BLL", 0.9, 1.0, [bll])]).to_json()
    lines = list(goal_lines(suite))
    assert lines[1] == "goal: BLL: 1, wanted >= 0.9: reached"
    assert goal.met == (not doubt)
    if doubt:
        assert lines[0] == f"goal: BLL over 1F1B: not counted (1F1B m=8: {doubt})"


def test_a_row_that_calibrates_is_what_predictions_rest_on() -> None:
    slow = [replace(row, doubt="") for row in measured(CASES, 2.4, 0.5)]
    assert with_predictions(slow, CASES, [CASES[0].name])[0].doubt == ""


def test_blocks_that_compute_may_use_all_processors() -> None:
    computing = replace(CASES[0], sleep=None)
    ranks = [RankMeasurement(1.0, 5, 0.0, 0.0, 0.0, 1, None, [1], float(CORES)) for _ in range(4)]
    (row,) = case_results([computing], {computing.name: [RoundMeasurement(ranks, SLEEP.batch)]}, computing.name)
    assert row.doubt == ""
    assert row.ratio_to_baseline == 1.0
