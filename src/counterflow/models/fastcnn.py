"""A convolutional network that learns CIFAR-10 in few epochs."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from counterflow.config import FastCNNConfig
from counterflow.models.whitening import Whitening

_MOMENTUM = 0.4
"""Weight of a batch in the running moments of batch norm."""


class ShiftNorm(nn.BatchNorm2d):
    """Batch norm with a bias; its weight stays 1, as a buffer that no optimizer sees."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=_MOMENTUM)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def fastcnn(config: FastCNNConfig, input_shape: tuple[int, ...], classes: int) -> Iterator[nn.Module]:
    """The network of Jordan (arXiv 2404.00498, airbench94) as layers: two a group, and an output ``[B, classes]``.

    Patches are whitened, then each group of ``config.widths`` is convolution, pooling, norm, GELU and convolution,
    norm, GELU. The first filters of a convolution are the identity of its input, the others random. Pooling stops at
    one pixel, so any image is large enough. The epsilon of the norms is torch's 1e-5 in place of 1e-12.
    """
    channels, height, width = input_shape
    patch = min(2, height), min(2, width)
    whitening = Whitening(channels, patch)
    height, width = height - patch[0] + 1, width - patch[1] + 1
    entry: list[nn.Module] = [whitening, nn.GELU()]
    for inputs, outputs in pairwise([len(whitening.bias), *config.widths]):
        window = min(2, height), min(2, width)
        height, width = height // window[0], width // window[1]
        pooled = _convolution(inputs, outputs), nn.MaxPool2d(window), ShiftNorm(outputs), nn.GELU()
        yield nn.Sequential(*entry, *pooled)
        entry = []
        yield nn.Sequential(_convolution(outputs, outputs), ShiftNorm(outputs), nn.GELU())
    linear = nn.Linear(config.widths[-1], classes, bias=False)
    yield nn.Sequential(nn.MaxPool2d((height, width)), nn.Flatten(), linear, Scale(config.scale))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:inputs])
    return convolution
