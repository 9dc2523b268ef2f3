"""VGG-like networks: convolutions with max pooling, then hidden layers."""

from itertools import pairwise

from torch import nn

from counterflow.config import VGGConfig


def vgg(config: VGGConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """VGG-like network by layers.

    There is one layer per convolution and its pooling, ``[B, channels, height, width]``, one per hidden layer, ``[B,
    width]``, and an output layer, ``[B, classes]``. The default is vgg8b of Nokland and Eidnes (arXiv 1901.06656)
    without the biases, which batch norm cancels. Pooling stops at one pixel, so any image is large enough.
    """
    channels, height, width = input_shape
    layers = []
    for outputs, pool in zip(config.channels, config.pools, strict=True):
        outputs = max(1, int(outputs * config.width))
        window = min(pool, height), min(pool, width)
        layers.append(_convolution(channels, outputs, window, config.dropout))
        channels, height, width = outputs, height // window[0], width // window[1]
    features = [channels * height * width, *config.hidden]
    layers += [_hidden(inputs, outputs, config.dropout) for inputs, outputs in pairwise(features)]
    layers.append(nn.Sequential(nn.Linear(features[-1], classes)))
    layers[len(config.channels)].insert(0, nn.Flatten())
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, window: tuple[int, int], dropout: float) -> nn.Sequential:
    layer = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    if dropout > 0:
        layer.append(nn.Dropout2d(dropout))
    if window != (1, 1):
        layer.append(nn.MaxPool2d(window))
    return layer


def _hidden(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    layer = nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())
    if dropout > 0:
        layer.append(nn.Dropout(dropout))
    return layer
