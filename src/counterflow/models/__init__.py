"""Networks as sequences of layers; blocks are made of whole layers."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from counterflow.config import CustomConfig, ModelConfig
from counterflow.models.custom import custom
from counterflow.models.fastcnn import fastcnn
from counterflow.models.gpt import gpt
from counterflow.models.networks import cnn, mlp, resnet, transformer, vgg
from counterflow.seeding import derive_seed

# Each builder takes a configuration class of its own, so the common type of the first argument is Any.
_Builder = Callable[[Any, tuple[int, ...], int], Iterator[nn.Module]]
"""Makes layer after layer; each under a device and a seed of its own."""
_IMAGES: dict[str, _Builder] = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "fastcnn": fastcnn,
    "resnet18": resnet,
    "resnet50": resnet,
    "resnet20": resnet,
    "resnet32": resnet,
}
_SEQUENCES: dict[str, _Builder] = {"transformer": transformer, "gpt": gpt}


def build(
    config: ModelConfig,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    layers: Collection[int] | None = None,
) -> nn.Sequential:
    """Build the network on the CPU, one entry of the sequence per layer.

    The weights of layer i are a function of the configuration, the seed and i: of neither the number of blocks nor the
    other layers. Those of a network of the user's own are a function of the seed alone.

    Args:
        config: Options of the network.
        input_shape: Shape of one sample: ``(channels, height, width)`` of an image, whose output is ``[B, classes]``
            logits, or ``(T,)`` of a sequence of tokens below ``classes``, whose output is ``[B, T, classes]``.
        classes: Number of classes.
        seed: Seed of the run.
        layers: Indices of the layers that get memory and values; all by default. Others are on torch's meta device,
            names and shapes alone, unless the network is of the user's own.

    Raises:
        ValueError: If ``config.name`` is unknown or takes samples of another kind.
    """
    if isinstance(config, CustomConfig):
        return build_seeded(lambda: custom(config, input_shape, classes), seed)
    kind, builders = ("sequences", _SEQUENCES) if len(input_shape) == 1 else ("images", _IMAGES)
    if config.name not in builders:
        raise ValueError(f"model.name={config.name}: allowed for {kind} are {', '.join([*builders, 'custom'])}")
    made, network = builders[config.name](config, input_shape, classes), nn.Sequential()
    while True:
        wanted = layers is None or len(network) in layers
        with _seeded(seed, len(network)), torch.device("cpu" if wanted else "meta"):
            layer = next(made, None)
        if layer is None:
            return network
        network.append(layer)


def build_seeded(factory: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    """Call ``factory`` with torch's generator of the CPU seeded by ``seed``; its state is restored afterwards."""
    with _seeded(seed):
        return factory()


@contextmanager
def _seeded(seed: int, *layer: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every GPU, which the fork above does not restore.
        torch.default_generator.manual_seed(derive_seed(seed, "model", *layer))
        yield
