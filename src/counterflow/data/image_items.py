"""Image files in folders, which are read one by one."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.data.items import Items, Spool


@dataclass(frozen=True, eq=False)
class ImageItems(Items):
    """Image files below ``root``, uint8 ``[M, C, H, W]``, each of the size and the channels of the image ``first``."""

    root: Path
    first: str
    shape: torch.Size
    names: NDArray[np.uint8]
    """Names of the files below ``root``, one after the other."""
    ends: NDArray[np.int64]
    """End of every name."""
    dtype = torch.uint8

    @staticmethod
    def of(root: Path, groups: Iterable[Sequence[bytes]], first: str | None = None) -> "ImageItems":
        """The files ``groups`` of names below ``root``, none of them empty; ``first`` is the first of them."""
        names, ends, size = Spool(np.uint8), Spool(np.int64), 0
        for group in groups:
            names.append(np.frombuffer(b"".join(group), np.uint8))
            stops = size + np.cumsum(np.fromiter(map(len, group), np.int64))
            ends.append(stops)
            size, first = int(stops[-1]), os.fsdecode(group[0]) if first is None else first
        assert first is not None, "there are no files"
        height, width, channels = read_image(root, first).shape
        found = ends.mapped()
        return ImageItems(root, first, torch.Size((len(found), channels, height, width)), names.mapped(), found)

    def name(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.names[start : int(self.ends[index])].tobytes())

    def read(self, index: int, epoch: int) -> Tensor:
        name = self.name(index)
        found = read_image(self.root, name)
        _, channels, height, width = self.shape
        if found.shape != (height, width, channels):
            raise ValueError(
                f"{name} has height, width and channels {list(found.shape)}: "
                f"must be {[height, width, channels]}, those of {self.first}"
            )
        return found.permute(2, 0, 1)


def read_image(root: Path, name: str) -> Tensor:
    """Read the pixels of the grey or RGB image ``name`` below ``root``, uint8 ``[H, W, C]``, without conversion.

    Raises ``ValueError`` naming the file and the fault.
    """
    from PIL import Image

    try:
        with Image.open(root / name) as image:
            image.load()
    # Every format of PIL reports damage by an exception of its own.
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    return pixels(image, name)


def pixels(image: Any, name: str) -> Tensor:
    """Pixels of a grey or RGB PIL image, uint8 ``[H, W, C]``; errors call it ``name``."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"{name} has pixels of mode {image.mode}: must be L (grey) or RGB")
    values = np.array(image)
    return torch.from_numpy(values).view(*values.shape[:2], -1)
