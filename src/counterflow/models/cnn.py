"""Plain convolutional network."""

from itertools import pairwise

from torch import nn

from counterflow.config import CNNConfig


def cnn(config: CNNConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """One layer per convolution, ``[B, channels, height, width]``, and an output layer ``[B, classes]``.

    A stride ``s`` turns ``h`` pixels into ``ceil(h / s)``, at least one, so any image is large enough.
    """
    channels = [input_shape[0], *config.channels]
    layers = [
        _convolution(config, inputs, outputs, stride)
        for (inputs, outputs), stride in zip(pairwise(channels), config.strides, strict=True)
    ]
    output = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
    return nn.Sequential(*layers, output)


def _convolution(config: CNNConfig, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    # Batch norm would cancel a bias.
    layer = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=config.norm == "none"))
    if config.norm == "batch":
        layer.append(nn.BatchNorm2d(outputs))
    layer.append(nn.ReLU())
    if config.dropout > 0:
        # Entire channels are dropped: neighbouring pixels are alike, so dropping single pixels hides little.
        layer.append(nn.Dropout2d(config.dropout))
    return layer
