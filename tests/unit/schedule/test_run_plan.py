"""Plans of runs, compared with definitions written out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterflow.message import MessageKind, Tag
from counterflow.schedule import RunPlan
from counterflow.topology import Edge, Stream

UP, DOWN = Edge(Stream.ACTIVATION, 1), Edge(Stream.TARGET, 1)


@pytest.mark.parametrize(
    ("batches", "every", "tests", "after"),
    [
        (7, 3, 1, [2, 5, 6]),
        (6, 3, 4, [2, 5]),  # the last batch is also a third one: once
        (6, 0, 1, [5]),
        (6, 100, 1, [5]),
        (6, 2, 0, []),  # no test data
        (3, 1, 2, [0, 1, 2]),
        (1, 0, 1, [0]),
    ],
)
def test_evaluations_by_hand(batches: int, every: int, tests: int, after: list[int]) -> None:
    plan = RunPlan(batches, lag=1, evaluate_every=every, test_batches=tests)
    assert [n for n in range(batches) if plan.evaluates_after(n)] == after


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3))
def test_an_evaluation_after_every_so_many_batches_and_the_last(batches: int, every: int, tests: int) -> None:
    plan = RunPlan(batches, lag=1, evaluate_every=every, test_batches=tests)
    expected = {*range(every - 1, batches, every), batches - 1}
    assert {n for n in range(batches) if plan.evaluates_after(n)} == expected


def test_streams_by_hand() -> None:
    plan = RunPlan(batches=3, lag=2, evaluate_every=2, test_batches=2)
    assert list(plan.messages(UP)) == [
        Tag(MessageKind.ACTIVATION, 0),
        Tag(MessageKind.ACTIVATION, 1),
        Tag(MessageKind.TEST, 1, 0),
        Tag(MessageKind.TEST, 1, 1),
        Tag(MessageKind.ACTIVATION, 2),
        Tag(MessageKind.TEST, 2, 0),
        Tag(MessageKind.TEST, 2, 1),
    ]
    assert list(plan.messages(DOWN)) == [
        Tag(MessageKind.TARGET, 0),
        Tag(MessageKind.TARGET, 1),
        Tag(MessageKind.TARGET, 2),
    ]


def test_streams_of_a_rule_that_predicts_at_the_bottom() -> None:
    """Nothing comes down while training; predictions of every test batch do."""
    plan = RunPlan(batches=3, lag=2, evaluate_every=2, test_batches=2, predicts_down=True)
    up = RunPlan(batches=3, lag=2, evaluate_every=2, test_batches=2)
    assert list(plan.messages(UP)) == list(up.messages(UP))
    assert list(plan.messages(DOWN)) == [
        Tag(MessageKind.PREDICTION, 1, 0),
        Tag(MessageKind.PREDICTION, 1, 1),
        Tag(MessageKind.PREDICTION, 2, 0),
        Tag(MessageKind.PREDICTION, 2, 1),
    ]
    assert [plan.lead(block) for block in (1, 2, 3)] == [0, 0, 0]


def test_streams_of_gradients() -> None:
    plan = RunPlan(batches=3, lag=2, evaluate_every=2, test_batches=2, gradients_from=4)
    assert list(plan.messages(DOWN)) == [
        Tag(MessageKind.GRADIENT, 0),
        Tag(MessageKind.GRADIENT, 1),
        Tag(MessageKind.GRADIENT, 2),
    ]
    assert [plan.lead(block) for block in (1, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize(("lag", "distances"), [(0, [0, 0, 0, 0]), (1, [0, 1, 2, 3]), (3, [0, 3, 6, 9])])
def test_distance_of_blocks_1_to_4(lag: int, distances: list[int]) -> None:
    plan = RunPlan(10, lag)
    assert [plan.lead(block) for block in (1, 2, 3, 4)] == distances


def test_held_out_data_stands_in_for_test_data_until_the_end() -> None:
    plan = RunPlan(batches=5, lag=1, evaluate_every=2, test_batches=3, validation_batches=2)
    assert [list(plan.evaluation(n)) for n in range(5)] == [[], [0, 1], [], [0, 1], [0, 1, 2, 3, 4]]
    assert [plan.split_ending(e) for e in range(5)] == [None, "validation", None, None, "test"]


def test_without_test_data_the_last_evaluation_is_like_the_others() -> None:
    plan = RunPlan(batches=4, lag=1, evaluate_every=2, test_batches=0, validation_batches=2)
    assert [list(plan.evaluation(n)) for n in range(4)] == [[], [0, 1], [], [0, 1]]
    assert [plan.split_ending(e) for e in range(2)] == [None, "validation"]


def test_without_held_out_data_all_evaluations_are_on_test_data() -> None:
    plan = RunPlan(batches=4, lag=1, evaluate_every=2, test_batches=3)
    assert [list(plan.evaluation(n)) for n in range(4)] == [[], [0, 1, 2], [], [0, 1, 2]]
    assert [plan.split_ending(e) for e in range(3)] == [None, None, "test"]
