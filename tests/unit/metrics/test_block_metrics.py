import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics, score

numbers = st.floats(allow_nan=False)
records = st.builds(
    BlockMetrics,
    event=st.sampled_from(["train", "test"]),
    n=st.integers(0, 2**40),
    block=st.integers(1, 100),
    rank=st.integers(0, 100),
    metrics=st.dictionaries(st.sampled_from(["loss", "accuracy", "nll"]), numbers),
    seconds=numbers,
    waited=numbers,
)


@given(records)
def test_a_record_survives_its_text_to_the_bit(record: BlockMetrics) -> None:
    text = record.to_json()
    assert "\n" not in text
    assert BlockMetrics.from_json(text) == record


def test_a_figure_that_is_no_number_survives_too() -> None:
    record = BlockMetrics("train", 3, 1, 0, {"loss": math.nan}, 1.0, 0.0)
    assert math.isnan(BlockMetrics.from_json(record.to_json()).metrics["loss"])


def row() -> StepMetrics:
    """Three blocks on two ranks; the bottom block has no feedback."""
    return StepMetrics(
        "train",
        20,
        [
            BlockMetrics("train", 20, 1, 0, {"loss": 0.5, "accuracy": 0.25}, 1.5, 0.123456),
            BlockMetrics("train", 20, 2, 0, {"loss": 0.75, "accuracy": 0.5, "feedback_loss": 1.25}, 1.75, 0.25),
            BlockMetrics("train", 20, 3, 1, {"loss": 1.0, "accuracy": 0.625, "feedback_loss": 2.0}, 1.23456, 0.5),
        ],
        {"free_energy": 3.25},
    )


def test_columns_are_bottom_to_top() -> None:
    assert row().column("loss") == [0.5, 0.75, 1.0]
    assert row().column("feedback_loss") == [None, 1.25, 2.0]
    assert row().column("nope") == [None, None, None]


def test_a_row_is_as_late_as_its_latest_record() -> None:
    assert row().seconds == 1.75


def test_waits_are_per_rank_and_the_latest_of_each() -> None:
    assert row().waited == [0.25, 0.5]


def test_the_line_of_a_row() -> None:
    text = row().to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "event": "train",
        "n": 20,
        "seconds": 1.75,
        "free_energy": 3.25,
        "loss": [0.5, 0.75, 1.0],
        "accuracy": [0.25, 0.5, 0.625],
        "feedback_loss": [None, 1.25, 2.0],
        "wait_fraction": [0.25, 0.5],
    }


def test_figures_keep_all_their_digits() -> None:
    value = 0.1 + 0.2
    record = BlockMetrics("test", 7, 1, 0, {"accuracy": value}, 12.345678, 0.1234567)
    line = json.loads(StepMetrics("test", 7, [record], {}).to_json())
    assert line == {
        "event": "test",
        "n": 7,
        "seconds": 12.3457,
        "accuracy": [value],
        "wait_fraction": [0.1235],
    }


def test_metrics_of_several_numbers_are_in_the_line_and_no_curve() -> None:
    """The lower block predicts nothing; what is read back is what was reported."""
    upper = BlockMetrics("test", 7, 2, 0, {"accuracy": 0.5, "bits_by_position": [4.0, 2.5]}, 1.0, 0.0)
    lower = BlockMetrics("test", 7, 1, 0, {}, 1.0, 0.0)
    row = StepMetrics("test", 7, [lower, BlockMetrics.from_json(upper.to_json())], {})
    assert row.lists("bits_by_position") == [None, [4.0, 2.5]]
    assert row.column("bits_by_position") == [None, None]
    assert json.loads(row.to_json())["bits_by_position"] == [None, [4.0, 2.5]]
    assert row.scalars() == {"test/accuracy/block2": 0.5}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, None),
        ({"accuracy": 0.75}, 0.75),
        ({"accuracy": 0.75, "bits_per_byte": 2.5}, -2.5),
        ({"accuracy": 0.75, "bits_per_byte": math.nan}, -math.inf),
        ({"accuracy": None}, None),
    ],
)
def test_scores(metrics: dict[str, float | None], expected: float | None) -> None:
    assert score(metrics) == expected
