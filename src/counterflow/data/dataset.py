"""Labelled inputs, in memory or read when they are needed: images, sequences of tokens, or numbers."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from counterflow.data.items import Items, Selected, describe, in_file
from counterflow.data.token_windows import TokenWindows

MEASURED = 2**14
"""Images that are not in memory of which the moments of channels are taken, at most."""
_CHUNK = 256
"""Samples that are read at a time."""
Rows = Tensor | TokenWindows | Items
"""Samples ``[M, ...]``."""


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs of one kind, with their labels.

    Images are uint8 ``[M, C, H, W]`` with a label each, int64 ``[M]``. Sequences of tokens are int64 ``[M, T]`` with a
    label at each position, int64 ``[M, T]``. Numbers are float32 ``[M, ...]`` with a label each, int64 ``[M]``, and
    enter the network as they are. Raises ``ValueError`` if inputs and labels do not fit.
    """

    inputs: Rows
    labels: Rows

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
        if not isinstance(self.inputs, Items):
            return Split(*self.rows(indices))
        rows = torch.arange(len(self))[indices] if isinstance(indices, slice) else indices
        numbers = in_file(rows.numpy())
        labels = self.labels
        kept = (
            Selected(labels, numbers) if isinstance(labels, Items) else torch.from_numpy(in_file(labels[rows].numpy()))
        )
        return Split(Selected(self.inputs, numbers), kept)

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
    """Checksum of all that is in files, or a name of data whose labels are not known before they are read; empty where
    labels are in memory."""

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
                    continue  # checked where they are written, or read
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
        sha = hashlib.sha256(f"{list(self.train.inputs.shape)}".encode())
        sha.update(labels.cpu().contiguous().numpy().data)
        return sha.hexdigest()[:16]

    def normalised(self, inputs: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Images as float32, with mean 0 and variance 1 in every channel of training; other inputs as they are."""
        if not self.train.images:
            return inputs
        mean, std = (moment.to(inputs.device, non_blocking=True) for moment in moments or self.moments)
        return (inputs.float() - mean[:, None, None]) / std[:, None, None]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """`pixel_moments` of the `measured` training images."""
        return pixel_moments(self.train.inputs[rows] for rows in self.measured)

    @property
    def measured(self) -> Iterator[Tensor]:
        """Rows of the training images that the moments are taken of, in chunks: all, or of those that are not in memory
        `MEASURED` at even distances."""
        total = len(self.train)
        count = min(total, MEASURED) if isinstance(self.train.inputs, Items) else total
        return chunks(torch.arange(count) * total // count)


def chunks(rows: Tensor) -> Iterator[Tensor]:
    """``rows`` in parts that are read at a time."""
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def pixel_moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels of every channel of images uint8 ``[B, C, H, W]``, float32 ``[C]``, in
    units of the uint8 values; a constant channel has the standard deviation 1.
    """
    counts: list[Tensor] = []
    for images in parts:
        found = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
        counts = [one + other for one, other in zip(counts, found, strict=True)] if counts else found
    mean, std = [], []
    values = torch.arange(256, device=counts[0].device)
    for count in counts:
        # Integers up to the last step: a sum of floats would depend on the number of threads.
        total, first, second = (int((count * values**power).sum()) for power in range(3))
        mean.append(first / total)
        std.append(sqrt(total * second - first**2) / total or 1.0)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
