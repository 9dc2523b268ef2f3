"""Samples of Datasets that are read by batch, with whatever their transforms draw."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from counterflow.config import OwnDataConfig
from counterflow.data import as_dataset
from counterflow.data.batch_loader import BatchKey, BatchLoader, EpochSampler
from counterflow.data.items import Items
from counterflow.data.reader_pool import ReaderPool
from counterflow.seeding import derive_seed


class Noisy(TorchDataset):
    """Sample i is [i, three random numbers], its label i % 4."""

    def __init__(self, size=24, **attributes):
        self.size = size
        vars(self).update(attributes)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        noise = [torch.rand(()), np.random.rand(), random.random()]
        return torch.tensor([float(index), *noise]), index % 4


NAMED = {"classes": list("abcd")}
KNOWN = {"targets": [i % 4 for i in range(24)]}


def expected(index, epoch, seed=5):
    """The sample, from the contract alone."""
    key = derive_seed(seed, "item", epoch, index)
    torch.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)
    return Noisy()[index][0]


def batches(source, workers=1, seed=5, **options):
    dataset = as_dataset(source, Noisy(8, **NAMED), seed=seed, **options)
    data = OwnDataConfig(workers=workers)
    return BatchLoader(dataset, data, EpochSampler(len(dataset.train), 6, seed))


@pytest.mark.parametrize("workers", [1, 3])
def test_samples_are_functions_of_seed_epoch_and_index(workers):
    loader = batches(Noisy(**NAMED))
    sources = {name: source for name, source in loader.sources.items() if isinstance(source, Items)}
    pool = ReaderPool(workers, sources, 20.0)
    try:
        object.__setattr__(loader, "workers", pool)
        order = [*map(BatchKey, range(2, 9)), *(BatchKey(e, True) for e in loader.test)]
        found = list(loader.stream("inputs", order, order))
        labels = list(loader.stream("labels", order, order))
    finally:
        pool.close()
    for key, inputs, known in zip(order, found, labels, strict=True):
        if key.evaluation:
            assert torch.equal(
                inputs, torch.stack([expected(i, -1) for i in range(6 * key.number, 6 * key.number + len(inputs))])
            )
        else:
            indices, epoch = loader.order.indices(key.number), key.number // 4
            assert torch.equal(inputs, torch.stack([expected(i, epoch) for i in indices.tolist()]))
            assert torch.equal(inputs, loader.inputs(key.number))
            assert torch.equal(known, indices % 4)


def test_the_generators_of_the_process_are_left_alone():
    loader = batches(Noisy(**NAMED))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    drawn = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    loader.inputs(0)
    assert (torch.rand(()), np.random.rand(), random.random()) == drawn


def labels(source):
    return as_dataset(source, seed=1).train.labels


def test_labels_are_known_where_the_dataset_has_them():
    known = torch.arange(24) % 4
    for targets in (known, known.tolist(), known.numpy().astype(np.uint8)):
        assert torch.equal(labels(Noisy(targets=targets)), known)
    part = Subset(Noisy(**KNOWN), [7, 2, 3])
    assert torch.equal(labels(part), torch.tensor([3, 2, 3]))
    assert as_dataset(Noisy(**KNOWN), seed=1).classes == 4


@pytest.mark.parametrize(
    "attributes",
    [{}, {"targets": None}, {"targets": [0, 1]}, {"targets": ["a"] * 24}, {"targets": [0.5] * 24},
     {**KNOWN, "target_transform": int}],
)  # fmt: skip
def test_labels_are_read_where_they_are_not_known(attributes):
    found = labels(Noisy(**NAMED, **attributes))
    assert isinstance(found, Items)
    assert torch.equal(found[:], torch.arange(24) % 4)


def test_a_dataset_that_tells_neither_labels_nor_classes_is_refused():
    with pytest.raises(ValueError, match=r"^data.workers: .*`targets`.*`classes`"):
        labels(Noisy())


def test_labels_that_do_not_fit_are_named():
    dataset = as_dataset(Noisy(targets=[0] * 24, **NAMED), seed=1)
    with pytest.raises(ValueError, match=r"^train\[1\]: label=1: its `targets` say 0$"):
        dataset.train.inputs[:3]
    dataset = as_dataset(Noisy(classes=["a", "b"]), seed=1)
    with pytest.raises(ValueError, match=r"^train\[2\]: label=2: must be 0..1$"):
        dataset.train.labels[:3]


class Uneven(Noisy):
    def __getitem__(self, index):
        return torch.zeros(3 + index // 5), 0


def test_a_sample_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"^train\[5\] has float32 \[4\]: must be float32 \[3\], as train\[0\]$"):
        as_dataset(Uneven(**NAMED), seed=1).train.inputs[:]


def test_a_held_out_part_is_that_of_data_in_memory():
    for source in (Noisy(**NAMED), Noisy(**KNOWN)):
        lazy = as_dataset(source, validation=0.25, limit=10, seed=1)
        known = as_dataset(Noisy(), validation=0.25, limit=10)
        for name in ("train", "validation"):
            one, other = getattr(lazy, name), getattr(known, name)
            assert torch.equal(one.inputs[:][:, 0], other.inputs[:, 0])
            assert torch.equal(one.labels[:], other.labels)


def test_tensors_stay_in_memory():
    pair = torch.randn(8, 3), torch.arange(8)
    assert as_dataset(pair, seed=1).train.inputs is pair[0]
    with pytest.raises(ValueError, match=r"^data.workers=1: .* allowed for data=custom is 0$"):
        BatchLoader(as_dataset(pair, seed=1), OwnDataConfig(workers=1), EpochSampler(8, 2, 1))
    with pytest.raises(ValueError, match=r"^train=Noisy: must not be empty$"):
        as_dataset(Noisy(0), seed=1)
