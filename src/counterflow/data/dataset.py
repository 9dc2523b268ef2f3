"""Labelled inputs, in memory or in mapped files: images, sequences of tokens, or numbers.

They are read from tensors and Datasets of torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from counterflow.data.token_windows import TokenWindows


def describe(tensor: Tensor | TokenWindows) -> str:
    """Type and shape, for errors: ``float32 [3, 5]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs of one kind, with their labels.

    Images are uint8 ``[M, C, H, W]`` with a label each, int64 ``[M]``. Sequences of tokens are int64 ``[M, T]`` with a
    label at each position, int64 ``[M, T]``. Numbers are float32 ``[M, ...]`` with a label each, int64 ``[M]``, and
    enter the network as they are. Raises ``ValueError`` if inputs and labels do not fit.
    """

    inputs: Tensor | TokenWindows
    labels: Tensor | TokenWindows

    def __post_init__(self) -> None:
        kind = self.inputs.dtype, self.inputs.ndim
        numbers = self.inputs.dtype == torch.float32 and self.inputs.ndim >= 2
        if not numbers and kind not in ((torch.uint8, 4), (torch.int64, 2)):
            raise ValueError(
                f"inputs={describe(self.inputs)}: must be images, uint8 [M, C, H, W], sequences, int64 [M, T], "
                "or numbers, float32 [M, ...]"
            )
        if not self.inputs.shape.numel():
            raise ValueError(f"inputs={describe(self.inputs)}: must not be empty")
        shape = self.inputs.shape if self.sequences else self.inputs.shape[:1]
        if self.labels.dtype != torch.int64 or self.labels.shape != shape:
            raise ValueError(f"labels={describe(self.labels)}: must be int64 {list(shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some samples, in memory."""
        return self.inputs[indices], self.labels[indices]

    def __getitem__(self, indices: Tensor | slice | list[int]) -> "Split":
        indices = torch.tensor(indices) if isinstance(indices, list) else indices
        return Split(*self.rows(indices))

    @property
    def images(self) -> bool:
        return self.inputs.dtype == torch.uint8

    @property
    def sequences(self) -> bool:
        return self.inputs.dtype == torch.int64


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of inputs of one kind and shape; labels, and tokens, are ``0..classes-1``.

    Raises ``ValueError`` if they do not fit.
    """

    train: Split
    test: Split | None
    """None: nothing is tested."""
    classes: int
    validation: Split | None = None
    """Part of the training data, held out. Choices are made on it, so that test data is evaluated once."""
    class_names: Sequence[str] = ()
    """A name for each class; by default its number."""
    tokens_per_byte: Mapping[str, float] | None = None
    """Tokens that stand for a byte of text in each split: ``train``, ``validation``, ``test``; None where the inputs
    are no text."""
    tokenizer: bytes | None = None
    """Content of the tokenizer's file; None where tokens are bytes, and where the inputs are no text."""
    content: str = ""
    """Checksum of all that is in files; empty where the data is in memory."""

    def __post_init__(self) -> None:
        names = tuple(map(str, self.class_names)) or tuple(map(str, range(self.classes)))
        if len(names) != self.classes:
            raise ValueError(f"class names={len(names)}: must be {self.classes}, one a class")
        object.__setattr__(self, "class_names", names)
        test = self.test or self.train  # a Split is never empty
        for name, split in (("train", self.train), ("test", test)):
            tokens = [("token", split.inputs)] if split.sequences else []
            for kind, tensor in (("label", split.labels), *tokens):
                if not isinstance(tensor, Tensor):
                    continue  # whoever wrote the file has counted its tokens
                wrong = tensor[(tensor < 0) | (tensor >= self.classes)]
                if len(wrong):
                    raise ValueError(
                        f"{kind}s out of range: {name} has {kind} {int(wrong[0])}: must be 0..{self.classes - 1}"
                    )
        for what, given, wanted in (
            ("shape", list(test.inputs.shape[1:]), list(self.train.inputs.shape[1:])),
            ("type", describe(test.inputs).split()[0], describe(self.train.inputs).split()[0]),
        ):
            if given != wanted:
                raise ValueError(f"{what} of test inputs={given}: must be {wanted}, that of the training inputs")

    def split_validation(self, share: float, limit: int | None) -> "Dataset":
        """Hold out ``share`` of the training data for validation, and keep at most ``limit`` of the rest.

        The choice of samples is the same for every run, whatever its seed. Raises ``ValueError`` if either side would
        be empty, or if ``limit`` exceeds the rest.
        """
        total = len(self.train)
        held = round(share * total)
        if share and not 0 < held < total:
            raise ValueError(f"data.validation={share}: of {total} training samples, this leaves none on one side")
        left = total - held
        if limit is not None and limit > left:
            raise ValueError(f"data.limit={limit}: must be at most {left}, what data.validation leaves for training")
        if not held and limit is None:
            return self
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        return replace(
            self, train=self.train[drawn[held:][:limit]], validation=self.train[drawn[:held]] if held else None
        )

    @cached_property
    def digest(self) -> str:
        """Checksum by which data sets are told apart: of files, or of the shape and the labels of the training data,
        whose order makes that a fast and sufficient test."""
        labels = self.train.labels
        if not isinstance(labels, Tensor):
            return self.content[:16]
        content = f"{list(self.train.inputs.shape)}".encode() + labels.cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def normalised(self, inputs: Tensor) -> Tensor:
        """Images as float32, with mean 0 and variance 1 in every channel of training; other inputs as they are."""
        if not self.train.images:
            return inputs
        mean, std = (moment.to(inputs.device, non_blocking=True) for moment in self.moments)
        return (inputs.float() - mean[:, None, None]) / std[:, None, None]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training pixels of every channel, float32 ``[C]``, in units of the uint8
        values; a constant channel has the standard deviation 1.
        """
        mean, std = [], []
        values = torch.arange(256)
        images = self.train.inputs
        assert isinstance(images, Tensor), "images are in memory"
        for channel in images.unbind(1):
            # Integers up to the last step: a sum of floats would depend on the number of threads.
            counts = torch.bincount(channel.flatten(), minlength=256)
            total, first, second = (int((counts * values**power).sum()) for power in range(3))
            mean.append(first / total)
            std.append(sqrt(total * second - first**2) / total or 1.0)
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


Source = Split | tuple[Tensor, Tensor] | data.Dataset[Any]
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
    values = [
        tensor
        for split in splits
        for tensor in (split.labels, split.inputs)
        if tensor.dtype == torch.int64 and isinstance(tensor, Tensor)
    ]
    classes = classes or 1 + max(int(tensor.max()) for tensor in values)
    names = getattr(train, "classes", None)  # as torchvision's data sets have them
    names = names if isinstance(names, list | tuple) and len(names) == classes else ()
    dataset = Dataset(splits[0], splits[-1] if test is not None else None, classes, class_names=names)
    return dataset.split_validation(validation, limit)


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
        samples = [_sample(source[index], f"{name}[{index}]") for index in range(len(source))]
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


def _sample(item: Any, name: str) -> tuple[Tensor, Tensor]:
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


def _stack(tensors: list[Tensor], name: str) -> Tensor:
    first = describe(tensors[0])
    for index, tensor in enumerate(tensors):
        if describe(tensor) != first:
            raise ValueError(f"{name}[{index}] has {describe(tensor)}: must be {first}, as {name}[0]")
    return torch.stack(tensors)


def pixels(image: Any, name: str) -> Tensor:
    """Pixels of a grey or RGB PIL image, uint8 ``[H, W, C]``; errors call it ``name``."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"{name} has pixels of mode {image.mode}: must be L (grey) or RGB")
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1)
