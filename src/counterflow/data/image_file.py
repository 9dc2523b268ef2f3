"""Image files and PIL images as tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read(root: Path, name: str) -> Tensor:
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
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1)
