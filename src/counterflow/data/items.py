"""Samples that are not in memory: each is read when a batch needs it."""

import os
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EVALUATION = -1
"""In place of an epoch, for samples that are not read to learn from them."""


class Typed(Protocol):
    """Something with the type and the shape of a tensor."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> torch.Size: ...


def describe(tensor: Typed) -> str:
    """Type and shape, for errors: ``float32 [3, 5]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class Items(ABC):
    """Samples of one type and shape, as a tensor ``[M, ...]`` of which only the rows that are asked for are read."""

    dtype: torch.dtype
    shape: torch.Size

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def name(self, index: int) -> str:
        """The sample ``index`` as errors call it."""

    @abstractmethod
    def read(self, index: int, epoch: int) -> Tensor:
        """The sample ``index``, of ``dtype`` and ``shape[1:]``: a function of its arguments alone.

        Raises ``ValueError`` that names the sample, if it cannot be read or does not fit.
        """

    def rows(self, rows: Tensor | slice, epoch: int = EVALUATION) -> Tensor:
        """Samples ``rows`` ``[R, ...]``, read one after the other in this process."""
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        found = torch.empty(len(numbers), *self.shape[1:], dtype=self.dtype)
        for sample, number in zip(found, numbers, strict=True):
            sample.copy_(self.read(number, epoch))
        return found

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.rows(rows)


@dataclass(frozen=True, eq=False)
class Selected(Items):
    """Some of the samples of ``source``, in another order."""

    source: Items
    indices: NDArray[np.int64]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return torch.Size((len(self.indices), *self.source.shape[1:]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int, epoch: int) -> Tensor:
        return self.source.read(int(self.indices[index]), epoch)


class Spool:
    """An array that grows in a temporary file without a name, and is then mapped from there: pages that the system can
    take back, so that the private memory of a process does not grow with it."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = kind
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed once it is mapped

    def append(self, values: NDArray[Any]) -> None:
        np.ascontiguousarray(values).tofile(self._file)

    def mapped(self) -> NDArray[Any]:
        """All values, one after the other; none can be appended any more."""
        with self._file as file:
            file.flush()
            return np.memmap(file, self._kind, "r+") if os.fstat(file.fileno()).st_size else np.empty(0, self._kind)


def in_file(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same array ``[M]`` in a `Spool`."""
    spool = Spool(np.int64)
    spool.append(array)
    return spool.mapped()
