"""Random crops and flips of images, as functions of (seed, epoch, index)."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from counterflow.seeding import derive_seed


def augment(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int,
    size: int,
    padding: int,
    flip: bool,
    pad: str = "zeros",
    alternate: bool = False,
) -> Tensor:
    """Crop images at random after padding, and flip half of them horizontally.

    The crop and the flip of an image depend on (seed, epoch, index) only, never on its batch.

    Args:
        images: uint8 ``[B, C, H, W]``.
        indices: Positions of these images in the training data, int64 ``[B]``.
        seed: Seed of the run.
        epoch: Every epoch has other crops and flips.
        size: Number of training images.
        padding: Pixels on every side before the crop; with ``reflect`` fewer than the image has.
        flip: Flips are made.
        pad: ``zeros``, or ``reflect``: the image's own pixels, mirrored at its edge.
        alternate: An image is flipped in every second epoch, beginning with the first or the second: the alternating
            flips of Jordan (arXiv 2404.00498, section 3.6).
    """
    device = images.device
    top, left, mirrored = (table[indices, None] for table in _tables(seed, epoch, size, padding, device))
    channels, height, width = images.shape[1:]
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        if alternate:
            mirrored = _first_flips(seed, size, device)[indices, None] ^ (epoch % 2 == 1)
        columns = columns.flip(1).where(mirrored, columns)
    if pad == "reflect":
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
    else:
        images = F.pad(images, (padding,) * 4)
    return images[
        torch.arange(len(images), device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _reflected(positions: Tensor, side: int) -> Tensor:
    """Positions in ``0 .. side - 1`` for those up to ``side - 1`` beyond either edge, which is not repeated."""
    return side - 1 - (side - 1 - positions.abs()).abs()


@lru_cache(maxsize=1)
def _first_flips(seed: int, size: int, device: torch.device) -> Tensor:
    """Images that the first epoch flips if flips alternate, bool ``[size]``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "flips"))
    return torch.randint(2, (size,), generator=generator).bool().to(device)


@lru_cache(maxsize=1)
def _tables(seed: int, epoch: int, size: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Top row and left column of every crop, int64 in ``0..2 * padding``, and flips, bool; ``[size]`` each."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    top, left = torch.randint(2 * padding + 1, (2, size), generator=generator)
    mirrored = torch.randint(2, (size,), generator=generator).bool()
    return top.to(device), left.to(device), mirrored.to(device)
