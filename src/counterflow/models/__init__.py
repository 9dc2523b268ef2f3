"""Networks as sequences of layers; blocks are made of whole layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from counterflow.config import ModelConfig
from counterflow.models.custom import custom
from counterflow.models.fastcnn import fastcnn
from counterflow.models.gpt import gpt
from counterflow.models.networks import cnn, mlp, resnet, transformer, vgg
from counterflow.seeding import derive_seed

# Each builder takes a configuration class of its own, so the common type of the first argument is Any.
_Builder = Callable[[Any, tuple[int, ...], int], nn.Sequential]
_IMAGES: dict[str, _Builder] = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "fastcnn": fastcnn,
    "resnet18": resnet,
    "resnet50": resnet,
    "resnet20": resnet,
    "resnet32": resnet,
    "custom": custom,
}
_SEQUENCES: dict[str, _Builder] = {"transformer": transformer, "gpt": gpt, "custom": custom}


def build(config: ModelConfig, input_shape: tuple[int, ...], classes: int, seed: int) -> nn.Sequential:
    """Build the network on the CPU, one entry of the sequence per layer.

    The weights are a function of the arguments only, never of the number of blocks.

    Args:
        config: Options of the network.
        input_shape: Shape of one sample: ``(channels, height, width)`` of an image, whose output is ``[B, classes]``
            logits, or ``(T,)`` of a sequence of tokens below ``classes``, whose output is ``[B, T, classes]``.
        classes: Number of classes.
        seed: Seed of the run.

    Raises:
        ValueError: If ``config.name`` is unknown or takes samples of another kind.
    """
    kind, builders = ("sequences", _SEQUENCES) if len(input_shape) == 1 else ("images", _IMAGES)
    if config.name not in builders:
        raise ValueError(f"model.name={config.name}: allowed for {kind} are {', '.join(builders)}")
    return build_seeded(lambda: builders[config.name](config, input_shape, classes), seed)


def build_seeded(factory: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    """Call ``factory`` with torch's generator of the CPU seeded by ``seed``; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every GPU, which the fork above does not restore.
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        return factory()
