"""Image files in folders, which are read one by one."""

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.data.items import Items, in_file


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
    def of(root: Path, names: Iterable[str], first: str | None = None) -> "ImageItems":
        """The files ``names`` below ``root``, of which there is one at least; ``first`` is the first of them."""
        buffer, ends = bytearray(), array("q")
        for name in names:
            buffer += os.fsencode(name)
            ends.append(len(buffer))
        first = first if first is not None else os.fsdecode(bytes(buffer[: ends[0]]))
        height, width, channels = read_image(root, first).shape
        return ImageItems(
            root,
            first,
            torch.Size((len(ends), channels, height, width)),
            in_file(np.frombuffer(buffer, np.uint8)),
            in_file(np.frombuffer(ends, np.int64)),
        )

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
