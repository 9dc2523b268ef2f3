"""Heads: from a block's output to the vector by which a local rule reads it."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.config import HeadConfig
from counterflow.models.gpt import DecoderLayer, initialize_decoder

_HEAD = 32
"""Dimensions of an attention head of a private layer."""


def pooling(shape: tuple[int, int, int], most: int) -> tuple[nn.Module, int]:
    """Average pooling of maps ``[C, H, W]`` to vectors of at most ``most`` dimensions, but at least C; and how many."""
    channels, height, width = shape
    sides = range(min(height, width), 0, -1)
    side = next((s for s in sides if channels * s * s <= most), 1)
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten()), channels * side * side


class LayerNorm(nn.Module):
    """Layer norm of vectors, without parameters."""

    def forward(self, features: Tensor) -> Tensor:
        return F.layer_norm(features, features.shape[-1:])


class Head(nn.Module):
    """Strided 3x3 convolutions until a map is one pixel, average pooling to at most ``dim`` dimensions, and layer norm.

    Feature maps ``[B, C, H, W]`` become ``[B, d]``; vectors ``[B, d]`` keep their shape, and so do sequences
    ``[B, T, d]``, which pass ``layers`` decoder layers before the norm. In BLL this is the latent head ``T_k``.
    """

    def __init__(self, shape: tuple[int, ...], config: HeadConfig) -> None:
        super().__init__()
        self.convolutions = nn.Sequential()
        self.layers = nn.Sequential()
        self.norm = LayerNorm()
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
        if len(shape) == 2 and config.layers:
            if self.dim % 2:
                raise ValueError(f"algorithm.head.layers={config.layers}: needs outputs of even width, not {self.dim}")
            heads = next(heads for heads in range(max(1, self.dim // _HEAD), 0, -1) if self.dim % (2 * heads) == 0)
            for _ in range(config.layers):
                layer = DecoderLayer(self.dim, heads, 2 * self.dim)
                initialize_decoder(layer, config.layers)
                self.layers.append(layer)

    def forward(self, activation: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.pool(self.layers(self.convolutions(activation))))
        return normalised


def split_output_layer(block: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Linear] | None:
    """The top ``block`` as the part up to its last features, and its output layer; None if it ends in anything else.

    ``shape`` is that of one sample of its output. Both parts share their modules with ``block``.
    """
    features, _ = without_output_layer(block, shape)
    *_, last = block.modules()
    return (features, last) if features is not block and isinstance(last, nn.Linear) else None


def without_output_layer(block: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """The top ``block`` up to its last features, and their shape.

    The output layer is the linear layer that a block made of ``nn.Sequential`` ends in. All other modules are shared
    with ``block`` and keep their names. A block that ends in anything else is returned as it is.

    Args:
        block: The top block of a network.
        shape: Shape of one sample of its output.
    """
    children = OrderedDict(block.named_children()) if isinstance(block, nn.Sequential) else OrderedDict()
    if not children:
        return block, shape
    name, last = children.popitem()
    if isinstance(last, nn.Linear):
        shape = (*shape[:-1], last.in_features)
    else:
        rest, shape = without_output_layer(last, shape)
        if rest is last:
            return block, shape
        children[name] = rest
    return nn.Sequential(children), shape
