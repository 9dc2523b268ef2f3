"""Layout of a message in one buffer: the header, then every tensor on a 64-byte boundary, large ones last.

A large tensor is sent as a message of its own, because copying it into the buffer takes as long as sending it.

A tensor in a received buffer is aligned as a fresh one is: vectorised kernels may round differently at other
addresses, and a run must give the same bits whether a message crosses a process or not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterflow.message import HEADER_BYTES
from counterflow.transport.channel import Payload

_ALIGNMENT = 64
_LARGE = 1 << 21
"""Bytes from which a copy costs more than another message."""


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
class MessageLayout:
    """The layout of messages of ``specs`` in a uint8 buffer of at least ``nbytes`` bytes."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...] = field(init=False)
    large: tuple[int, ...] = field(init=False)
    """Indices of the large tensors."""
    head: int = field(init=False)
    """Bytes of the header and all other tensors."""
    pieces: tuple[slice, ...] = field(init=False)
    """Slices of the buffer that are sent separately: the head, and every large tensor."""
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        large = [i for i, spec in enumerate(self.specs) if spec.nbytes >= _LARGE]
        offsets, end, head = [0] * len(self.specs), HEADER_BYTES, HEADER_BYTES
        for i in sorted(range(len(self.specs)), key=lambda i: i in large):
            offsets[i] = end
            end += math.ceil(self.specs[i].nbytes / _ALIGNMENT) * _ALIGNMENT
            if i not in large:
                head = end
        alone = (slice(offsets[i], offsets[i] + self.specs[i].nbytes) for i in large)
        object.__setattr__(self, "offsets", tuple(offsets))
        object.__setattr__(self, "large", tuple(large))
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "pieces", (slice(0, head), *alone))
        object.__setattr__(self, "nbytes", end)

    @property
    def payload_nbytes(self) -> int:
        return self.nbytes - HEADER_BYTES

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Raise ``ValueError`` unless ``tensors`` match the layout: the receiver has posted buffers of its sizes."""
        found = tuple(TensorSpec.of(tensor) for tensor in tensors)
        if found != self.specs:
            raise ValueError(f"a message of {_text(found)} where {_text(self.specs)} was agreed")

    def views(self, buffer: Tensor) -> Payload:
        """Tensors of the message in ``buffer``, without a copy."""
        return tuple(self.view(buffer, i) for i in range(len(self.specs)))

    def view(self, buffer: Tensor, i: int) -> Tensor:
        """Tensor ``i`` of the message in ``buffer``, without a copy."""
        spec, start = self.specs[i], self.offsets[i]
        return buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}" for spec in specs) or "nothing"
