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
        convolution(inputs, outputs, stride, config.norm, config.dropout)
        for (inputs, outputs), stride in zip(pairwise(channels), config.strides, strict=True)
    ]
    output = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
    return nn.Sequential(*layers, output)


def convolution(inputs: int, outputs: int, stride: int, norm: str, dropout: float) -> nn.Sequential:
    """Layer of a 3x3 convolution, a norm (``none`` or ``batch``), ReLU, and dropout if it is above 0.

    Maps ``[B, inputs, H, W]`` become ``[B, outputs, ceil(H / stride), ceil(W / stride)]``.
    """
    # Batch norm would cancel a bias.
    layer = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none"))
    if norm == "batch":
        layer.append(nn.BatchNorm2d(outputs))
    layer.append(nn.ReLU())
    if dropout > 0:
        # Entire channels are dropped: neighbouring pixels are alike, so dropping single pixels hides little.
        layer.append(nn.Dropout2d(dropout))
    return layer
