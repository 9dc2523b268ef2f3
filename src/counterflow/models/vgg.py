"""VGG-like networks: convolutions with max pooling, then hidden layers."""

from itertools import pairwise

from torch import nn

from counterflow.config import VGGConfig
from counterflow.models.cnn import convolution
from counterflow.models.mlp import hidden_layer


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
        layers.append(convolution(channels, outputs, 1, "batch", config.dropout))
        if window != (1, 1):
            layers[-1].append(nn.MaxPool2d(window))
        channels, height, width = outputs, height // window[0], width // window[1]
    features = [channels * height * width, *config.hidden]
    layers += [hidden_layer(inputs, outputs, "batch", config.dropout) for inputs, outputs in pairwise(features)]
    layers.append(nn.Sequential(nn.Linear(features[-1], classes)))
    layers[len(config.channels)].insert(0, nn.Flatten())
    return nn.Sequential(*layers)
