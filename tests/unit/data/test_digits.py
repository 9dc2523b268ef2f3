import torch
from sklearn.datasets import load_digits

from counterflow.config import DataConfig
from counterflow.data import load

DIGITS = DataConfig(name="digits")


def rows(split):
    return [(int(label), *image.flatten().tolist()) for image, label in zip(split.inputs, split.labels, strict=True)]


def test_sizes_and_values():
    dataset = load(DIGITS)
    assert dataset.train.inputs.shape == (1437, 1, 8, 8)
    assert dataset.test.inputs.shape == (360, 1, 8, 8)
    assert dataset.classes == 10
    assert (int(dataset.train.inputs.min()), int(dataset.train.inputs.max())) == (0, 16)


def test_splits_together_are_the_whole_with_its_labels():
    dataset, whole = load(DIGITS), load_digits()
    expected = [(int(y), *map(int, x)) for x, y in zip(whole.data, whole.target, strict=True)]
    assert sorted(rows(dataset.train) + rows(dataset.test)) == sorted(expected)


def test_same_split_every_time_whatever_the_global_seed():
    torch.manual_seed(1)
    first = load(DIGITS)
    torch.manual_seed(2)
    second = load(DIGITS)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.labels, second.test.labels)


def test_stratified():
    dataset = load(DIGITS)
    whole = torch.bincount(torch.cat([dataset.train.labels, dataset.test.labels]))
    share = torch.bincount(dataset.test.labels) - whole * 360 / 1797
    assert share.abs().max() < 1
