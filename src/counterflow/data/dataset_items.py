"""Samples of a map-style Dataset of torch, which are read one by one."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from counterflow.data.image_items import pixels
from counterflow.data.items import Items, describe
from counterflow.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class DatasetItems(Items):
    """The inputs, or the labels, of ``dataset``.

    A sample is read under torch's, numpy's and Python's generators seeded by (seed, epoch, index), so that whatever a
    transform draws from them is a function of these. Their states stay as they were.
    """

    dataset: data.Dataset[Any]
    title: str
    seed: int
    kinds: tuple[Tensor, Tensor]
    """The input and the label of the first sample."""
    targets: Tensor | None
    """The label of every sample, if the Dataset knows them without reading samples."""
    classes: int
    """Labels that are read, and tokens, are below; 0 if it is not known."""
    column: int = 0
    """0 for inputs, 1 for labels."""

    @staticmethod
    def of(dataset: Any, title: str, seed: int, classes: int) -> "DatasetItems":
        """The inputs of ``dataset``, of which the first sample is read."""
        with _generators(derive_seed(seed, "item", -1, 0)):
            kinds = sample(dataset[0], f"{title}[0]")
        return DatasetItems(dataset, title, seed, kinds, _targets(dataset, (len(dataset), *kinds[1].shape)), classes)

    @property
    def labels(self) -> "DatasetItems":
        """The labels of these inputs, read with them."""
        return replace(self, column=1)

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.kinds[self.column].dtype

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return torch.Size((len(self.dataset), *self.kinds[self.column].shape))  # type: ignore[arg-type]

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def read(self, index: int, epoch: int) -> Tensor:
        name = self.name(index)
        with _generators(derive_seed(self.seed, "item", epoch, index)):
            found = sample(self.dataset[index], name)
        for tensor, kind in zip(found, self.kinds, strict=True):
            if describe(tensor) != describe(kind):
                raise ValueError(f"{name} has {describe(tensor)}: must be {describe(kind)}, as {self.title}[0]")
        if self.targets is not None and not torch.equal(found[1], self.targets[index]):
            raise ValueError(f"{name}: label={found[1].tolist()}: its `targets` say {self.targets[index].tolist()}")
        for what, tensor in (("input", found[0]), ("label", found[1])):
            if self.classes and tensor.dtype == torch.int64 and not ((tensor >= 0) & (tensor < self.classes)).all():
                raise ValueError(f"{name}: {what}={tensor.tolist()}: must be 0..{self.classes - 1}")
        return found[self.column]


def _targets(dataset: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The labels, int64 of ``shape``, that ``dataset`` names beforehand; None if there are none."""
    if isinstance(dataset, data.Subset):
        whole = _targets(dataset.dataset, (len(dataset.dataset), *shape[1:]))  # type: ignore[arg-type]
        return whole if whole is None else whole[torch.as_tensor(dataset.indices)]
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        found = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole_numbers = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    return found.long() if whole_numbers and tuple(found.shape) == shape else None


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    """The global generators, seeded by ``seed``, for its duration."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def sample(item: Any, name: str) -> tuple[Tensor, Tensor]:
    """Input, and label, int64, of one sample; errors begin with ``name``."""
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise ValueError(f"{name}={type(item).__name__}: must be a pair (input, label)")
    source, label = item
    is_image = hasattr(source, "getbands")  # of PIL, which this check does not import
    inputs = pixels(source, name).permute(2, 0, 1) if is_image else _tensor(source, f"{name}: input")
    labels = _tensor(label, f"{name}: label")
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{name}: label is {describe(labels)}: must be whole numbers")
    return inputs if inputs.ndim else inputs.view(1), labels.long()


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {type(value).__name__}: must be a tensor, an array or a number") from error
