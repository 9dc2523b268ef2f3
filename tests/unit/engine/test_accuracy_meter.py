from math import log

import pytest
import torch
from torch import Tensor

from counterflow.data.batch_loader import View
from counterflow.engine.evaluation import AccuracyMeter

PLAIN = View(False, 0, 2)


def add(meter: AccuracyMeter, predictions: Tensor, labels: Tensor) -> None:
    meter.add(predictions, torch.nn.functional.one_hot(predictions, 6), labels, PLAIN)


def test_accuracy_over_batches_of_different_size() -> None:
    meter = AccuracyMeter()
    add(meter, torch.tensor([[1, 2, 3], [1, 0, 0]]), torch.tensor([1, 2, 0]))
    add(meter, torch.tensor([[5], [4]]), torch.tensor([5]))
    assert meter.take("test") == [{"accuracy": 0.75}, {"accuracy": 0.5}]
    assert meter.take("test") == []


def test_a_sequence_is_right_where_every_position_is() -> None:
    meter = AccuracyMeter()
    labels = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    one_wrong = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 0]])
    add(meter, torch.stack([labels, one_wrong]), labels)
    assert meter.take("test") == [
        {"accuracy": 1.0, "sequence_accuracy": 1.0},
        {"accuracy": 0.875, "sequence_accuracy": 0.5},
    ]


def test_bits_of_text_by_hand() -> None:
    """Two blocks; the first gives every label a quarter, the second the right ones a half; 3 tokens for 4 bytes."""
    meter = AccuracyMeter({"validation": 1.0, "test": 0.75})
    labels = torch.tensor([[1, 2, 3], [0, 0, 1]])
    even = torch.zeros(2, 3, 4)
    better = torch.nn.functional.one_hot(labels, 4) * log(3)  # 3 of 6
    for rows in (slice(0, 1), slice(1, 2)):
        scores = torch.stack([even[rows], better[rows]])
        meter.add(scores.argmax(-1), scores, labels[rows], PLAIN)
    first, second = meter.take("test")
    assert first == {
        "accuracy": 1 / 3,
        "perplexity": pytest.approx(4),
        "bits_per_byte": pytest.approx(2 * 0.75),
        "bits_by_position": pytest.approx([1.5, 1.5, 1.5]),
    }
    assert second == {
        "accuracy": 1.0,
        "perplexity": pytest.approx(2),
        "bits_per_byte": pytest.approx(0.75),
        "bits_by_position": pytest.approx([0.75, 0.75, 0.75]),
    }
    assert meter.take("test") == []


@pytest.mark.parametrize("length", [1, 2, 3, 16, 21])
def test_bits_of_every_part_of_a_window(length: int) -> None:
    """Against the logarithms of all scores, position by position; batches of different size."""
    generator = torch.Generator().manual_seed(length)
    scores = torch.randn(2, 5, length, 7, generator=generator)
    labels = torch.randint(7, (5, length), generator=generator)
    meter = AccuracyMeter({"test": 0.5})
    for rows in (slice(0, 4), slice(4, 5)):
        meter.add(scores[:, rows].argmax(-1), scores[:, rows], labels[rows], PLAIN)
    likelihoods = scores.double().softmax(-1)
    for block, found in enumerate(meter.take("test")):
        parts: dict[int, list[float]] = {}
        for t in range(length):  # 0; 1; 2 and 3; 4 to 7; ..
            own = [-log(float(likelihoods[block, b, t, labels[b, t]])) for b in range(5)]
            parts.setdefault(len(f"{t:b}") if t else 0, []).extend(own)
        expected = [sum(part) / len(part) * 0.5 / log(2) for part in parts.values()]
        assert found["bits_by_position"] == pytest.approx(expected, rel=1e-6)
        whole = sum(sum(part) for part in parts.values()) / (5 * length)
        assert found["bits_per_byte"] == pytest.approx(whole * 0.5 / log(2), rel=1e-6)


def test_views_are_averaged_by_weight_and_plain_ones_counted_apart() -> None:
    meter = AccuracyMeter()
    labels = torch.tensor([0, 1])
    plain = torch.tensor([[[3.0, 0.0], [2.0, 0.0]]])  # block 1 takes both samples for class 0
    light = torch.tensor([[[0.0, 3.0], [0.0, 3.0]]])
    for view, scores in ((View(True, 0, 2), light), (PLAIN, plain)):
        meter.add(scores.argmax(-1), scores, labels, view)  # sums 6, 6 (a tie, class 0) and 4, 6
    for view, scores in ((View(False, 1, 1), light), (PLAIN, plain)):
        meter.add(scores.argmax(-1), scores, labels, view)  # sums 6, 3 and 4, 3
    assert meter.take("test") == [{"accuracy": 0.5, "tta_accuracy": 0.75}]
    add(meter, torch.tensor([[0, 1]]), labels)
    assert meter.take("test") == [{"accuracy": 1.0}], "nothing is left of the views before"
