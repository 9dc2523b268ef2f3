import torch

from counterflow.engine.evaluation import AccuracyMeter


def test_accuracy_over_batches_of_different_size() -> None:
    meter = AccuracyMeter()
    meter.add(torch.tensor([[1, 2, 3], [1, 0, 0]]), torch.tensor([1, 2, 0]))
    meter.add(torch.tensor([[5], [4]]), torch.tensor([5]))
    assert meter.take() == [{"accuracy": 0.75}, {"accuracy": 0.5}]
    assert meter.take() == []


def test_a_sequence_is_right_where_every_position_is() -> None:
    meter = AccuracyMeter()
    labels = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    one_wrong = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 0]])
    meter.add(torch.stack([labels, one_wrong]), labels)
    assert meter.take() == [
        {"accuracy": 1.0, "sequence_accuracy": 1.0},
        {"accuracy": 0.875, "sequence_accuracy": 0.5},
    ]
