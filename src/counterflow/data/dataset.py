"""Labelled inputs in memory: images, sequences of tokens, or numbers."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor


def describe(tensor: Tensor) -> str:
    """Type and shape, for errors: ``float32 [3, 5]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs of one kind, with their labels.

    Images are uint8 ``[M, C, H, W]`` with a label each, int64 ``[M]``. Sequences of tokens are int64 ``[M, T]`` with a
    label at each position, int64 ``[M, T]``. Numbers are float32 ``[M, ...]`` with a label each, int64 ``[M]``, and
    enter the network as they are. Raises ``ValueError`` if inputs and labels do not fit.
    """

    inputs: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        kind = self.inputs.dtype, self.inputs.ndim
        numbers = self.inputs.dtype == torch.float32 and self.inputs.ndim >= 2
        if not numbers and kind not in ((torch.uint8, 4), (torch.int64, 2)):
            raise ValueError(
                f"inputs={describe(self.inputs)}: must be images, uint8 [M, C, H, W], sequences, int64 [M, T], "
                "or numbers, float32 [M, ...]"
            )
        if not self.inputs.numel():
            raise ValueError(f"inputs={describe(self.inputs)}: must not be empty")
        shape = self.inputs.shape if self.sequences else self.inputs.shape[:1]
        if self.labels.dtype != torch.int64 or self.labels.shape != shape:
            raise ValueError(f"labels={describe(self.labels)}: must be int64 {list(shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice | list[int]) -> "Split":
        return Split(self.inputs[indices], self.labels[indices])

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

    def __post_init__(self) -> None:
        test = self.test or self.train  # a Split is never empty
        for name, split in (("train", self.train), ("test", test)):
            tokens = [("token", split.inputs)] if split.sequences else []
            for kind, tensor in (("label", split.labels), *tokens):
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
        for channel in self.train.inputs.unbind(1):
            # Integers up to the last step: a sum of floats would depend on the number of threads.
            counts = torch.bincount(channel.flatten(), minlength=256)
            total, first, second = (int((counts * values**power).sum()) for power in range(3))
            mean.append(first / total)
            std.append(sqrt(total * second - first**2) / total or 1.0)
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
