"""Data that a Trainer accepts: Splits, pairs of tensors, and Datasets of torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from counterflow.data.dataset import Dataset, Split
from counterflow.data.dataset_items import DatasetItems, sample
from counterflow.data.items import describe

Source = Split | tuple[Tensor, Tensor] | data.Dataset[Any]
"""Data that a Trainer accepts."""


def as_dataset(
    train: Source,
    test: Source | None = None,
    classes: int | None = None,
    validation: float = 0.0,
    limit: int | None = None,
    seed: int | None = None,
) -> Dataset:
    """Dataset of one or two sources that `as_split` accepts.

    Args:
        train: Source of the training data.
        test: Source of the test data; None if nothing is tested.
        classes: Number of classes; None is the largest label (or token) of all sources, plus 1.
        validation: Share of the training data that is held out for validation.
        limit: Number of the remaining samples that are trained on; None is all.
        seed: Read the samples of Datasets when batches need them, each under generators seeded by (seed, epoch, index).
            None reads them into memory, once.

    Raises:
        ValueError: If a source is refused, or if the sources and the numbers do not fit together.
    """
    given = [(source, name) for source, name in ((train, "train"), (test, "test")) if source is not None]
    names = getattr(train, "classes", None)  # as torchvision's data sets have them
    names = names if isinstance(names, list | tuple) else ()
    splits = [
        as_split(source, name) if seed is None else lazy_split(source, name, seed, classes or len(names))
        for source, name in given
    ]
    classes = classes or _classes(splits, len(names))
    names = names if len(names) == classes else ()
    content = "" if isinstance(splits[0].labels, Tensor) else f"{type(train).__name__} {describe(splits[0].inputs)}"
    dataset = Dataset(splits[0], splits[-1] if test is not None else None, classes, class_names=names, content=content)
    return dataset.split_validation(validation, limit)


def _classes(splits: Sequence[Split], named: int) -> int:
    """Number of classes: the largest label and token of all that is in memory, plus 1, or ``named`` where labels, or
    tokens, are not."""
    values = [tensor for split in splits for tensor in (split.labels, split.inputs) if tensor.dtype == torch.int64]
    tensors = [tensor for tensor in values if isinstance(tensor, Tensor)]
    if len(tensors) == len(values):
        return 1 + max(int(tensor.max()) for tensor in tensors)
    if not named:
        raise ValueError(
            "data.workers: a Dataset that is read by batch must have `targets`, the label of every sample, or "
            "`classes`, the name of every class; allowed for others is data.workers=0"
        )
    return named


def lazy_split(source: Any, name: str, seed: int, classes: int) -> Split:
    """Split of a source whose samples are read one by one, if it is a Dataset, with the labels that it knows; else
    `as_split`. ``classes`` is the number of classes where the source names them, else 0."""
    if isinstance(source, Split | tuple | list | data.IterableDataset) or not hasattr(source, "__getitem__"):
        return as_split(source, name)
    if not len(source):
        raise ValueError(f"{name}={type(source).__name__}: must not be empty")
    items = DatasetItems.of(source, name, seed, classes)
    try:
        return Split(items, items.targets if items.targets is not None else items.labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def as_split(source: Any, name: str) -> Split:
    """Split of a `Split`, a pair of tensors (inputs, labels), or a map-style Dataset of pairs (input, label).

    Samples of a Dataset are stacked. Tensors, arrays and numbers keep their type, a number becomes ``[1]``, and a PIL
    image becomes uint8 ``[C, H, W]``. Raises ``ValueError`` beginning with ``name`` and the index of the sample if
    something does not fit.
    """
    if isinstance(source, Split):
        inputs, labels = source.inputs, source.labels
    elif isinstance(source, tuple | list) and len(source) == 2 and all(isinstance(part, Tensor) for part in source):
        inputs, labels = source
    elif isinstance(source, data.IterableDataset) or not (
        hasattr(source, "__len__") and hasattr(source, "__getitem__")
    ):
        raise ValueError(
            f"{name}={type(source).__name__}: must be a Split, a pair of tensors (inputs, labels), "
            "or a Dataset with __len__ and __getitem__"
        )
    else:
        samples = [sample(source[index], f"{name}[{index}]") for index in range(len(source))]
        if not samples:
            raise ValueError(f"{name}={type(source).__name__}: must not be empty")
        inputs, labels = (_stack(list(tensors), name) for tensors in zip(*samples, strict=True))
    try:
        split = Split(inputs, labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    negative = (labels < 0).nonzero().tolist() if isinstance(labels, Tensor) else []
    if negative:
        assert isinstance(labels, Tensor)
        index = negative[0]
        raise ValueError(f"{name}{index}: label={int(labels[tuple(index)])}: must not be negative")
    return split


def _stack(tensors: list[Tensor], name: str) -> Tensor:
    first = describe(tensors[0])
    for index, tensor in enumerate(tensors):
        if describe(tensor) != first:
            raise ValueError(f"{name}[{index}] has {describe(tensor)}: must be {first}, as {name}[0]")
    return torch.stack(tensors)
