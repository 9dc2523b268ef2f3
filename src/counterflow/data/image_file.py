"""An image file."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read(root: Path, name: str) -> Tensor:
    """The pixels of the grey or RGB image ``name`` below ``root``, uint8 ``[H, W, C]``, as they are in the file.

    ``ValueError`` names the file and what is wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(root / name) as image:
            mode, pixels = image.mode, np.array(image)
    # PIL leaves it to every format with which exception it says that a file is damaged.
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    if mode not in ("L", "RGB"):
        raise ValueError(f"{name} has pixels of mode {mode}: must be L (grey) or RGB")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1)
