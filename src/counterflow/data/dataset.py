"""Labelled images in memory."""

from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 ``[M, C, H, W]``, and their labels, int64 ``[M]``. ``ValueError`` where they do not fit."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images={self._kind(self.images)}: must be uint8 [M, C, H, W]")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels={self._kind(self.labels)}: must be int64 [M]")
        if len(self.images) != len(self.labels):
            raise ValueError(f"labels={len(self.labels)}: must be {len(self.images)}, one an image")
        if not self.images.numel():
            raise ValueError(f"images={self._kind(self.images)}: must not be empty")

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def _kind(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of images of one shape, with labels ``0..classes-1``. ``ValueError`` where they do not fit.

    ``mean`` and ``std``, float32 ``[C]``, are those of the training pixels in units of the uint8 values.
    """

    train: Split
    test: Split
    classes: int
    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test)):
            wrong = split.labels[(split.labels < 0) | (split.labels >= self.classes)]
            if len(wrong):
                raise ValueError(
                    f"labels out of range: {name} has label {int(wrong[0])}: must be 0..{self.classes - 1}"
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = [list(split.images.shape[1:]) for split in (self.test, self.train)]
            raise ValueError(f"shape of test images={shapes[0]}: must be {shapes[1]}, that of the training images")
        channels = self.train.images.shape[1]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value.dtype != torch.float32 or value.shape != (channels,):
                raise ValueError(f"{name}={value.tolist()}: must be float32 [{channels}], one a channel")
        if not bool((self.std > 0).all()):
            raise ValueError(f"std={self.std.tolist()}: must be greater than 0")

    @classmethod
    def of(cls, train: Split, test: Split, classes: int) -> Self:
        """The data set with the mean and standard deviation of ``train``; a constant channel has ``std`` 1."""
        mean, std = [], []
        for channel in train.images.unbind(1):
            # Whole numbers up to the last step: a sum of floats would depend on the number of threads.
            counts = torch.bincount(channel.flatten(), minlength=256).tolist()
            total = sum(counts)
            first = sum(count * value for value, count in enumerate(counts))
            second = sum(count * value**2 for value, count in enumerate(counts))
            mean.append(first / total)
            std.append(sqrt(total * second - first**2) / total or 1.0)
        return cls(train, test, classes, *torch.tensor([mean, std], dtype=torch.float32))
