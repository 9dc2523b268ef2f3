"""Windows of a long sequence of tokens in a file, which is mapped and never read as a whole."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TYPES = ("uint8", "uint16", "uint32")
"""Types of tokens in a file."""


@dataclass(frozen=True)
class TokenWindows:
    """Windows of ``length`` tokens, one after the other, as a tensor int64 ``[M, length]`` of which only the rows that
    are asked for are read.

    Those of ``shift=1`` are the next tokens, the labels of those of ``shift=0``.
    """

    path: Path
    type: str
    """Type of the tokens in the file, one of `TYPES`, little endian."""
    length: int
    shift: int = 0
    most: int | None = None
    """Windows at most, at even distances; None are all that the file has."""

    @cached_property
    def _tokens(self) -> NDArray[np.unsignedinteger]:
        kind = np.dtype(self.type).newbyteorder("<")
        if not self.path.stat().st_size:  # which cannot be mapped
            return np.empty(0, kind)
        return np.memmap(self.path, kind, "r")

    @property
    def available(self) -> int:
        """Windows that the file has, each with a token after its last one."""
        return max(0, (len(self._tokens) - 1) // self.length)

    def __len__(self) -> int:
        return self.available if self.most is None else min(self.available, self.most)

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.length))

    @property
    def ndim(self) -> int:
        return 2

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The windows ``rows``, int64 ``[R, length]``, in memory."""
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        available, count = self.available, len(self)
        starts = [number * available // count * self.length + self.shift for number in numbers]
        found = [torch.from_numpy(self._tokens[start : start + self.length].astype(np.int64)) for start in starts]
        return torch.stack(found) if found else torch.empty(0, self.length, dtype=torch.int64)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_tokens"}

    def labels(self) -> "TokenWindows":
        """The token after each one of these."""
        return replace(self, shift=1)
