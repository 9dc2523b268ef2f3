"""Heads: from a block's output to the vector by which a local rule reads it."""

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import HeadConfig


def pooling(shape: tuple[int, int, int], most: int) -> tuple[nn.Module, int]:
    """Average pooling of maps ``[C, H, W]`` to vectors of at most ``most`` dimensions, but at least C; and how many."""
    channels, height, width = shape
    sides = range(min(height, width), 0, -1)
    side = next((s for s in sides if channels * s * s <= most), 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten()), channels * side * side


class Head(nn.Module):
    """Strided 3x3 convolutions until a map is one pixel, average pooling to at most ``dim`` dimensions, and layer norm.

    Feature maps ``[B, C, H, W]`` become ``[B, d]``; vectors ``[B, d]`` and sequences ``[B, T, d]`` keep their shape. In
    BLL this is the latent head ``T_k``.
    """

    def __init__(self, shape: tuple[int, ...], config: HeadConfig) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        self.pool: nn.Module = nn.Identity()
        if len(shape) == 3:
            channels, height, width = shape
            for _ in range(config.convolutions):
                if max(height, width) == 1:  # nothing is left to look at; and torch 2.15's bfloat16 gradient is garbage
                    break
                self.convolutions.extend(
                    [
                        nn.Conv2d(channels, config.width, 3, stride=2, padding=1, bias=False),
                        nn.BatchNorm2d(config.width),
                        nn.ReLU(),
                    ]
                )
                channels, height, width = config.width, (height + 1) // 2, (width + 1) // 2
            self.pool, self.dim = pooling((channels, height, width), config.dim)
        else:
            self.dim = shape[-1]

    def forward(self, activation: Tensor) -> Tensor:
        features = self.pool(self.convolutions(activation))
        return F.layer_norm(features, features.shape[-1:])
