"""Multi-layer perceptron."""

from itertools import pairwise
from math import prod

from torch import nn

from counterflow.config import MLPConfig


def mlp(config: MLPConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``config.hidden`` layers ``[B, width]`` and an output layer ``[B, classes]``; the first flattens its input."""
    features = [prod(input_shape)] + [config.width] * config.hidden
    layers = [hidden_layer(inputs, outputs, config.norm, config.dropout) for inputs, outputs in pairwise(features)]
    layers[0].insert(0, nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(features[-1], classes))


def hidden_layer(inputs: int, outputs: int, norm: str, dropout: float) -> nn.Sequential:
    """Linear layer, a norm (``none``, ``layer`` or ``batch``), ReLU, and dropout if it is above 0."""
    # Batch norm would cancel a bias; layer norm does not, its mean is over the features.
    layer = nn.Sequential(nn.Linear(inputs, outputs, bias=norm != "batch"))
    if norm == "layer":
        layer.append(nn.LayerNorm(outputs))
    elif norm == "batch":
        layer.append(nn.BatchNorm1d(outputs))
    layer.append(nn.ReLU())
    if dropout > 0:
        layer.append(nn.Dropout(dropout))
    return layer
