import pytest
import torch
from torch import nn

from counterflow.config import CNNConfig
from counterflow.models import build


def kinds(layer: nn.Module) -> list[str]:
    return [type(module).__name__ for module in layer.modules() if not isinstance(module, nn.Sequential)]


@pytest.mark.parametrize(
    ("norm", "dropout", "expected"),
    [
        ("none", 0.0, ["Conv2d", "ReLU"]),
        ("batch", 0.0, ["Conv2d", "BatchNorm2d", "ReLU"]),
        ("batch", 0.3, ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d"]),
    ],
)
def test_layers(norm: str, dropout: float, expected: list[str]) -> None:
    network = build(CNNConfig(channels=[4, 8], strides=[1, 2], norm=norm, dropout=dropout), (3, 9, 9), 10, seed=0)
    assert [kinds(layer) for layer in network] == [expected, expected, ["AdaptiveAvgPool2d", "Flatten", "Linear"]]
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride) for m in convolutions] == [(3, 4, (1, 1)), (4, 8, (2, 2))]
    assert all((m.bias is None) == (norm == "batch") for m in convolutions)
    assert all(m.p == dropout for m in network.modules() if isinstance(m, nn.Dropout2d))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(28, [28, 14, 14, 7, 7, 7]), (8, [8, 4, 4, 2, 2, 2]), (1, [1, 1, 1, 1, 1, 1])],
)
def test_feature_maps_never_vanish(pixels: int, expected: list[int]) -> None:
    config = CNNConfig()
    activation = torch.randn(2, 1, pixels, pixels)
    sizes = []
    network = build(config, (1, pixels, pixels), 10, seed=0)
    for layer in network[:-1]:
        activation = layer(activation)
        sizes.append(activation.shape)
    assert sizes == [(2, c, p, p) for c, p in zip(config.channels, expected, strict=True)]
    assert network[-1](activation).shape == (2, 10)


def test_output_layer_is_linear_in_the_mean_over_pixels() -> None:
    output = build(CNNConfig(channels=[4], strides=[1]), (1, 5, 5), 3, seed=0)[-1]
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(output(x), output[-1](x.mean(dim=(2, 3))))
