"""Random crops and flips."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from counterflow.seeding import derive_seed


def augment(images: Tensor, indices: Tensor, *, seed: int, epoch: int, size: int, padding: int, flip: bool) -> Tensor:
    """Crop images at random after zero padding, and flip half of them horizontally.

    The crop and the flip of an image depend on (seed, epoch, index) only, never on its batch.

    Args:
        images: uint8 ``[B, C, H, W]``.
        indices: Positions of these images in the training data, int64 ``[B]``.
        seed: Seed of the run.
        epoch: Every epoch has other crops and flips.
        size: Number of training images.
        padding: Pixels of zeros on every side before the crop.
        flip: Flips are made.
    """
    device = images.device
    top, left, mirrored = (table[indices, None] for table in _tables(seed, epoch, size, padding, device))
    channels, height, width = images.shape[1:]
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        columns = columns.flip(1).where(mirrored, columns)
    return F.pad(images, (padding,) * 4)[
        torch.arange(len(images), device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


@lru_cache(maxsize=1)
def _tables(seed: int, epoch: int, size: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Top row and left column of every crop, int64 in ``0..2 * padding``, and flips, bool; ``[size]`` each."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    top, left = torch.randint(2 * padding + 1, (2, size), generator=generator)
    mirrored = torch.randint(2, (size,), generator=generator).bool()
    return top.to(device), left.to(device), mirrored.to(device)
