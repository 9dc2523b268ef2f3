"""How a tuple of tensors lies in one buffer: the header, then every tensor on a 64-byte boundary.

A tensor in a received buffer is aligned as a fresh one is, because vectorised kernels may round differently
elsewhere, and a run must give the same bits whether a message crossed a process or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterflow.message import HEADER_BYTES
from counterflow.transport.channel import Payload

_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Frame:
    """The layout of messages of ``specs`` in a uint8 buffer of at least ``nbytes`` bytes."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        offsets, end = [], HEADER_BYTES
        for spec in self.specs:
            offsets.append(end)
            end += math.ceil(spec.nbytes / _ALIGNMENT) * _ALIGNMENT
        object.__setattr__(self, "offsets", tuple(offsets))
        object.__setattr__(self, "nbytes", end)

    @property
    def payload_nbytes(self) -> int:
        return self.nbytes - HEADER_BYTES

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Raise ``ValueError`` unless ``tensors`` are what was agreed: the receiver has posted exactly that room."""
        found = tuple(TensorSpec.of(tensor) for tensor in tensors)
        if found != self.specs:
            raise ValueError(f"a message of {_text(found)} where {_text(self.specs)} was agreed")

    def views(self, buffer: Tensor) -> Payload:
        """The tensors of the message in ``buffer``, without a copy."""
        return tuple(
            buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)
            for spec, start in zip(self.specs, self.offsets, strict=True)
        )


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}" for spec in specs) or "nothing"
