"""Latent heads ``T_k``: maps from a block's output to its latent's natural parameters (section 3.1 of the design)."""

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import LatentConfig


def pooling(shape: tuple[int, int, int], most: int) -> tuple[nn.Module, int]:
    """Average pooling of maps ``[C, H, W]`` to vectors of at most ``most`` dimensions, but at least C.

    Returns the module and the number of dimensions.
    """
    channels, height, width = shape
    sides = range(min(height, width), 0, -1)
    side = next((s for s in sides if channels * s * s <= most), 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten()), channels * side * side


class LatentHead(nn.Module):
    """Latent head: strided 3x3 convolutions, average pooling to at most ``dim`` dimensions, and layer norm.

    Feature maps ``[B, C, H, W]`` become ``[B, d]``; vectors ``[B, d]`` and sequences ``[B, T, d]`` keep their shape.
    Convolutions end when a map is one pixel. Raises ``ValueError`` if ``d`` is no multiple of ``multiple``.
    """

    def __init__(self, shape: tuple[int, ...], config: LatentConfig, multiple: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        self.pool: nn.Module = nn.Identity()
        if len(shape) == 3:
            channels, height, width = shape
            for _ in range(config.convolutions):
                if max(height, width) == 1:  # too small for another; and torch 2.15's bfloat16 gradient is wrong here
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
        if self.dim % multiple:
            raise ValueError(
                f"algorithm.latent.categories={multiple}: must divide {self.dim}, the dimensions of a block's latent"
            )

    def forward(self, activation: Tensor) -> Tensor:
        latent = self.pool(self.convolutions(activation))
        return F.layer_norm(latent, latent.shape[-1:])
