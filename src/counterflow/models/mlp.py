"""Multi-layer perceptron."""

from itertools import pairwise
from math import prod

from torch import nn

from counterflow.config import MLPConfig


def mlp(config: MLPConfig, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``config.hidden`` layers ``[B, width]`` and an output layer ``[B, classes]``; the first flattens its input."""
    features = [prod(input_shape)] + [config.width] * config.hidden
    layers = [_hidden(config, inputs, outputs) for inputs, outputs in pairwise(features)]
    layers[0].insert(0, nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(features[-1], classes))


def _hidden(config: MLPConfig, inputs: int, outputs: int) -> nn.Sequential:
    # Batch norm would cancel a bias; layer norm does not, its mean is over the features.
    layer = nn.Sequential(nn.Linear(inputs, outputs, bias=config.norm != "batch"))
    if config.norm == "layer":
        layer.append(nn.LayerNorm(outputs))
    elif config.norm == "batch":
        layer.append(nn.BatchNorm1d(outputs))
    layer.append(nn.ReLU())
    if config.dropout > 0:
        layer.append(nn.Dropout(config.dropout))
    return layer
