from itertools import permutations as every

import torch
from sklearn.datasets import load_digits

from counterflow.config import DataConfig
from counterflow.data import load
from counterflow.data.builtin import permutations

DIGITS = DataConfig(name="digits")
REVERSE = DataConfig(name="reverse")


def rows(split):
    return [(int(label), *image.flatten().tolist()) for image, label in zip(split.inputs, split.labels, strict=True)]


def test_digits_have_their_sizes_and_values():
    dataset = load(DIGITS)
    assert dataset.train.inputs.shape == (1437, 1, 8, 8)
    assert dataset.test.inputs.shape == (360, 1, 8, 8)
    assert dataset.classes == 10
    assert (int(dataset.train.inputs.min()), int(dataset.train.inputs.max())) == (0, 16)


def test_splits_of_digits_together_are_the_whole_with_its_labels():
    dataset, whole = load(DIGITS), load_digits()
    expected = [(int(y), *map(int, x)) for x, y in zip(whole.data, whole.target, strict=True)]
    assert sorted(rows(dataset.train) + rows(dataset.test)) == sorted(expected)


def test_digits_are_split_alike_every_time_whatever_the_global_seed():
    torch.manual_seed(1)
    first = load(DIGITS)
    torch.manual_seed(2)
    second = load(DIGITS)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.labels, second.test.labels)


def test_digits_are_stratified():
    dataset = load(DIGITS)
    whole = torch.bincount(torch.cat([dataset.train.labels, dataset.test.labels]))
    share = torch.bincount(dataset.test.labels) - whole * 360 / 1797
    assert share.abs().max() < 1


def test_all_permutations_in_lexicographic_order():
    for size, count in ((1, 1), (2, 2), (3, 6), (5, 120)):
        assert list(map(tuple, permutations(torch.arange(count), size).tolist())) == list(every(range(size)))


def test_the_last_of_ten():
    assert permutations(torch.tensor([3_628_799, 0]), 10).tolist() == [list(range(9, -1, -1)), list(range(10))]


def test_labels_are_the_tokens_in_reverse_order():
    dataset = load(REVERSE)
    assert dataset.classes == 10
    for split, size in ((dataset.train, 20_000), (dataset.test, 2_000)):
        assert split.inputs.shape == split.labels.shape == (size, 10)
        for t in range(10):
            assert torch.equal(split.labels[:, t], split.inputs[:, 9 - t])


def test_every_sequence_is_another_permutation():
    dataset = load(REVERSE)
    tokens = torch.cat([dataset.train.inputs, dataset.test.inputs])
    assert torch.equal(tokens.sort(1).values, torch.arange(10).expand_as(tokens))
    assert len(tokens.unique(dim=0)) == len(tokens)


def test_every_token_is_about_equally_often_at_every_position():
    counts = torch.stack([torch.bincount(column, minlength=10) for column in load(REVERSE).train.inputs.unbind(1)])
    assert bool(((counts > 1800) & (counts < 2200)).all())  # 2000 expected, deviation 42


def test_same_sequences_every_time_whatever_the_global_seed():
    torch.manual_seed(1)
    first = load(REVERSE)
    torch.manual_seed(2)
    second = load(REVERSE)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.inputs, second.test.inputs)
