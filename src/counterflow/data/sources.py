"""Data of the user's own: tensors and map-style Datasets of torch become a `Split`."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from counterflow.data import image_files
from counterflow.data.dataset import Dataset, Split, describe

Source = Split | tuple[Tensor, Tensor] | TorchDataset[Any]
"""Data that a Trainer accepts."""


def as_dataset(
    train: Source,
    test: Source | None = None,
    classes: int | None = None,
    validation: float = 0.0,
    limit: int | None = None,
) -> Dataset:
    """Dataset of one or two sources that `as_split` accepts.

    Args:
        train: Source of the training data.
        test: Source of the test data; None if nothing is tested.
        classes: Number of classes; None is the largest label (or token) of all sources, plus 1.
        validation: Share of the training data that is held out for validation.
        limit: Number of the remaining samples that are trained on; None is all.

    Raises:
        ValueError: If a source is refused, or if the sources and the numbers do not fit together.
    """
    splits = [as_split(source, name) for source, name in ((train, "train"), (test, "test")) if source is not None]
    values = [tensor for split in splits for tensor in (split.labels, split.inputs) if tensor.dtype == torch.int64]
    classes = classes or 1 + max(int(tensor.max()) for tensor in values)
    return Dataset(splits[0], splits[-1] if test is not None else None, classes).split_validation(validation, limit)


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
    elif isinstance(source, IterableDataset) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(
            f"{name}={type(source).__name__}: must be a Split, a pair of tensors (inputs, labels), "
            "or a Dataset with __len__ and __getitem__"
        )
    else:
        samples = [_sample(source[index], f"{name}[{index}]") for index in range(len(source))]
        if not samples:
            raise ValueError(f"{name}={type(source).__name__}: must not be empty")
        inputs, labels = (_stack(list(tensors), name) for tensors in zip(*samples, strict=True))
    try:
        split = Split(inputs, labels)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    negative = (labels < 0).nonzero().tolist()
    if negative:
        index = negative[0]
        raise ValueError(f"{name}{index}: label={int(labels[tuple(index)])}: must not be negative")
    return split


def _sample(item: Any, name: str) -> tuple[Tensor, Tensor]:
    """Input, and label, int64, of one sample; errors begin with ``name``."""
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise ValueError(f"{name}={type(item).__name__}: must be a pair (input, label)")
    source, label = item
    if hasattr(source, "getbands"):  # a PIL image; the check does not import PIL
        inputs = image_files.pixels(source, name).permute(2, 0, 1)
    else:
        inputs = _tensor(source, f"{name}: input")
    labels = _tensor(label, f"{name}: label")
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{name}: label is {describe(labels)}: must be whole numbers")
    return inputs if inputs.ndim else inputs.view(1), labels.long()


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {type(value).__name__}: must be a tensor, an array or a number") from error


def _stack(tensors: list[Tensor], name: str) -> Tensor:
    first = describe(tensors[0])
    for index, tensor in enumerate(tensors):
        if describe(tensor) != first:
            raise ValueError(f"{name}[{index}] has {describe(tensor)}: must be {first}, as {name}[0]")
    return torch.stack(tensors)
