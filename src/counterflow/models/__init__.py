"""Networks as sequences of layers, the units between which a network may be cut into blocks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from counterflow.config import ModelConfig
from counterflow.models.cnn import cnn
from counterflow.models.mlp import mlp
from counterflow.models.resnet import resnet
from counterflow.seeding import derive

# Each builder takes its own configuration class, so the common type of the first argument is Any.
_BUILDERS: dict[str, Callable[[Any, tuple[int, ...], int], nn.Sequential]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet,
}


def build(config: ModelConfig, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Sequential:
    """The whole network, float32 on the CPU, one entry of the sequence per layer.

    ``input_shape`` is that of one sample, ``(channels, height, width)``; the output is ``[B, classes]`` logits. The
    weights depend on the arguments only, never on the global random state (which is left as it was) or on the number
    of blocks. Raises ``ValueError`` for an unknown ``config.name``.
    """
    if config.name not in _BUILDERS:
        raise ValueError(f"model.name={config.name}: allowed are {', '.join(_BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every GPU, which the fork above does not restore.
        torch.default_generator.manual_seed(derive(seed, "model"))
        return _BUILDERS[config.name](config, input_shape, classes)
