from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from torch import nn

from counterflow.config import VGGConfig
from counterflow.models import build


def kinds(layer: nn.Module) -> list[str]:
    return [type(module).__name__ for module in layer.modules() if not isinstance(module, nn.Sequential)]


def network(shape: tuple[int, ...], **options: Any) -> nn.Sequential:
    with torch.device("meta"):
        return build(VGGConfig(**options), shape, 10, seed=0)


def test_default_is_vgg8b() -> None:
    """``'vgg8b': [128, 256, 'M', 256, 512, 'M', 512, 'M', 512, 'M']`` in the code of Nokland and Eidnes."""
    convolution, pooled = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    layers = network((3, 32, 32))
    assert [kinds(layer) for layer in layers] == [
        *[convolution, pooled] * 2,
        *[pooled] * 2,
        ["Flatten", "Linear", "BatchNorm1d", "ReLU"],
        ["Linear"],
    ]
    weights = [tuple(m.weight.shape) for m in layers.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    channels = [3, 128, 256, 256, 512, 512, 512]
    assert weights[:6] == [(b, a, 3, 3) for a, b in pairwise(channels)]
    assert weights[6:] == [(1024, 512 * 2 * 2), (10, 1024)]
    norms = 2 * (sum(channels[1:]) + 1024)
    assert sum(p.numel() for p in layers.parameters()) == sum(prod(w) for w in weights) + norms + 10


def test_dropout_is_before_pooling_and_after_hidden_layers() -> None:
    layers = network((3, 32, 32), dropout=0.3, channels=[4], pools=[2], hidden=[8, 8])
    assert [kinds(layer) for layer in layers] == [
        ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d", "MaxPool2d"],
        ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Dropout"],
        ["Linear", "BatchNorm1d", "ReLU", "Dropout"],
        ["Linear"],
    ]
    assert {m.p for m in layers.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)} == {0.3}


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((32, 32), [(32, 32), (16, 16), (16, 16), (8, 8), (4, 4), (2, 2)]),
        ((28, 28), [(28, 28), (14, 14), (14, 14), (7, 7), (3, 3), (1, 1)]),
        ((8, 8), [(8, 8), (4, 4), (4, 4), (2, 2), (1, 1), (1, 1)]),
        ((1, 12), [(1, 12), (1, 6), (1, 6), (1, 3), (1, 1), (1, 1)]),
        ((1, 1), [(1, 1)] * 6),
    ],
)
def test_pooling_stops_at_one_pixel(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    layers = build(VGGConfig(width=1 / 64, hidden=[8]), (1, *size), 10, seed=0)
    activation = torch.randn(2, 1, *size)
    shapes = [tuple((activation := layer(activation)).shape[1:]) for layer in layers]
    assert shapes == [*((c, *s) for c, s in zip([2, 4, 4, 8, 8, 8], sizes, strict=True)), (8,), (10,)]


def test_pooling_takes_the_largest_pixel() -> None:
    layer = build(VGGConfig(channels=[3], pools=[2]), (2, 4, 6), 10, seed=0)[0].eval()
    x = torch.randn(2, 2, 4, 6)
    patches = layer[:3](x).unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.equal(layer(x), patches.amax((-2, -1)))


def test_width_multiplies_channels_only() -> None:
    layers = network((3, 32, 32), width=0.3)
    widths = [m.weight.shape[0] for m in layers.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert widths == [38, 76, 76, 153, 153, 153, 1024, 10]
    assert network((3, 32, 32), width=1e-9)[5][0].out_channels == 1


def test_without_hidden_layers_the_output_is_linear_in_the_last_map() -> None:
    output = build(VGGConfig(channels=[4], pools=[2], hidden=[]), (1, 4, 4), 3, seed=0)[-1]
    x = torch.randn(2, 4, 2, 2)
    torch.testing.assert_close(output(x), output[-1](x.reshape(2, 16)))
