"""Random crops and flips."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from counterflow.seeding import derive_seed


def augment(images: Tensor, indices: Tensor, *, seed: int, epoch: int, size: int, padding: int, flip: bool) -> Tensor:
    """Crop images, uint8 ``[B, C, H, W]``, at random after ``padding`` pixels of zeros, then ``flip`` half of them.

    What happens to an image depends on (seed, epoch) and its index among the ``size`` training images, int64 ``[B]``,
    never on its batch.
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
    """Top row and left column of the crop, int64 in ``0..2 * padding``, and whether to flip; ``[size]`` each."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    top, left = torch.randint(2 * padding + 1, (2, size), generator=generator)
    mirrored = torch.randint(2, (size,), generator=generator).bool()
    return top.to(device), left.to(device), mirrored.to(device)
