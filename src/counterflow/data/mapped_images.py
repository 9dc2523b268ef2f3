"""Images in arrays of numpy, which are mapped where the file allows it."""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from counterflow.data.items import Items


@dataclass(frozen=True, eq=False)
class MappedImages(Items):
    """Images uint8 ``[M, C, H, W]`` of an array ``[M, H, W, C]``."""

    array: NDArray[np.uint8]
    title: str
    dtype = torch.uint8

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        count, height, width, channels = self.array.shape
        return torch.Size((count, channels, height, width))

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def read(self, index: int, epoch: int) -> Tensor:
        return torch.from_numpy(np.array(self.array[index])).permute(2, 0, 1)


def mapped_member(path: Path, name: str) -> NDArray[Any]:
    """The array ``name`` of a ``.npz`` file: mapped where it is stored as it is (``np.savez``), without its checksum,
    and in memory where it is compressed."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as file:
            content: NDArray[Any] = file[name]
            return content
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        names = struct.unpack("<HH", file.read(30)[26:])
        file.seek(sum(names), 1)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, kind = read(file)
        if kind.hasobject:
            raise ValueError(f"{name} holds objects")
        if not np.prod(shape):
            return np.empty(shape, kind)
        return np.memmap(path, kind, "r", file.tell(), shape, "F" if fortran else "C")
