"""Options of networks."""

# ruff: noqa: RUF009  # `checked` makes a field

from dataclasses import dataclass, field
from typing import Any

from counterflow.config.validators import (
    LARGEST,
    NamedOptions,
    checked,
    fraction,
    named_call,
    one_of,
    positive,
    size,
    sizes,
)

_WEIGHTS = (".safetensors", ".pt", ".pth")


def _cut(key: str, value: object) -> None:
    if isinstance(value, str):
        one_of(key, value, ("flops", "parameters", "profile"))
    elif not (isinstance(value, list) and value and all(type(count) is int and count > 0 for count in value)):
        raise ValueError(f"{key}={value}: allowed are flops, parameters, profile, or a list of layer counts")


def _weights_file(key: str, value: str) -> None:
    if not value.endswith(_WEIGHTS):
        raise ValueError(f"{key}={value}: must be a file {', '.join(_WEIGHTS[:-1])} or {_WEIGHTS[-1]}")


def _layers(key: str, values: list[Any]) -> None:
    if not all((type(value) is int and value >= 0) or isinstance(value, str) for value in values):
        raise ValueError(f"{key}={values}: must be a list of layers, by index or by name")


def _one_a_convolution(key: str, values: list[int], channels: list[int]) -> None:
    if len(values) != len(channels) or not all(1 <= value <= LARGEST for value in values):
        raise ValueError(f"{key}={values}: must be {len(channels)} positive numbers, one a convolution")


@dataclass(kw_only=True)
class ModelConfig(NamedOptions, key="model"):
    cut: Any = checked("flops", _cut)
    """Split of layers into blocks: ``flops``, ``parameters``, ``profile``, or the number of layers of every block."""
    init: str | None = checked(None, _weights_file)
    """File of the weights that training starts with, by the network's own names or torchvision's; by default random."""
    freeze: list[Any] = checked([], _layers)
    """Layers that do not learn, by index or by name. They compute as in evaluation: batch norm with the statistics that
    it has, and no dropout."""


@dataclass(kw_only=True)
class MLPConfig(ModelConfig):
    name: str = "mlp"
    width: int = checked(256, size, 1)
    hidden: int = checked(4, size, 1)
    """Number of hidden layers; the output layer comes on top, so there are ``hidden + 1`` layers to cut."""
    norm: str = checked("layer", one_of, ("none", "layer", "batch"))
    dropout: float = checked(0.0, fraction)


@dataclass(kw_only=True)
class CNNConfig(ModelConfig):
    name: str = "cnn"
    channels: list[int] = checked([32, 64, 64, 128, 128, 128], sizes)
    """Output channels of every convolution."""
    strides: list[int] = field(default_factory=lambda: [1, 2, 1, 2, 1, 1])
    """Stride of every convolution."""
    norm: str = checked("batch", one_of, ("none", "batch"))
    dropout: float = checked(0.0, fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_a_convolution("model.strides", self.strides, self.channels)


@dataclass(kw_only=True)
class VGGConfig(ModelConfig):
    name: str = "vgg"
    channels: list[int] = checked([128, 256, 256, 512, 512, 512], sizes)
    """Output channels of every convolution."""
    pools: list[int] = field(default_factory=lambda: [1, 2, 1, 2, 2, 2])
    """Side of the max pooling after every convolution; 1 is none."""
    hidden: list[int] = checked([1024], sizes, 0)
    """Width of every hidden layer between the convolutions and the output layer."""
    width: float = checked(1.0, positive, LARGEST)
    """Multiplies ``channels``."""
    dropout: float = checked(0.0, fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_a_convolution("model.pools", self.pools, self.channels)


@dataclass(kw_only=True)
class FastCNNConfig(ModelConfig):
    name: str = "fastcnn"
    widths: list[int] = checked([64, 256, 256], sizes)
    """Channels of every group of two convolutions; there are two layers a group to cut, and the output layer."""
    scale: float = checked(1 / 9, positive)
    """Factor of the logits."""


@dataclass(kw_only=True)
class ResNetConfig(ModelConfig):
    name: str = "resnet18"
    stages: list[int] = checked([2, 2, 2, 2], sizes)
    """Residual blocks of every stage; each stage after the first halves the pixels and doubles the channels."""
    width: int = checked(64, size, 1)
    """Channels of the first stage (a quarter of its outputs where the blocks are bottlenecks)."""
    stem: str = checked("small", one_of, ("small", "imagenet"))
    """First layer: a 3x3 convolution for ``small`` images; for those of ``imagenet``, as in torchvision, a 7x7
    convolution and max pooling, each of stride 2."""
    stride: int = checked(1, size, 1)
    """Stride of the convolution of the ``small`` stem."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem == "imagenet" and self.stride != 1:
            raise ValueError(f"model.stride={self.stride}: has no effect with model.stem=imagenet")


@dataclass(kw_only=True)
class ResNet50Config(ResNetConfig):
    name: str = "resnet50"
    stages: list[int] = checked([3, 4, 6, 3], sizes)


@dataclass(kw_only=True)
class ResNet20Config(ResNetConfig):
    name: str = "resnet20"
    stages: list[int] = checked([3, 3, 3], sizes)
    width: int = checked(16, size, 1)


@dataclass(kw_only=True)
class ResNet32Config(ResNet20Config):
    name: str = "resnet32"
    stages: list[int] = checked([5, 5, 5], sizes)


@dataclass(kw_only=True)
class TransformerConfig(ModelConfig):
    name: str = "transformer"
    layers: int = checked(4, size, 1)
    """Number of encoder layers; embedding and output layer come on top, so there are ``layers + 2`` layers to cut."""
    heads: int = checked(1, size, 1)
    width: int = checked(64, size, 1)
    hidden: int = checked(128, size, 1)
    """Width of the hidden layer in every encoder layer."""
    dropout: float = checked(0.0, fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"model.heads={self.heads}: must divide model.width={self.width}")


@dataclass(kw_only=True)
class GPTConfig(ModelConfig):
    """Decoder-only transformer; the defaults are its smallest preset, of 1.4 million parameters for 256 tokens."""

    name: str = "gpt"
    layers: int = checked(8, size, 1)
    """Number of decoder layers; embedding and output layer come on top, so there are ``layers + 2`` layers to cut."""
    heads: int = checked(4, size, 1)
    width: int = checked(128, size, 1)
    hidden: int = checked(256, size, 1)
    """Width of the gated layer in every decoder layer."""
    dropout: float = checked(0.0, fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise ValueError(f"model.heads={self.heads}: must divide half of model.width={self.width}")


@dataclass(kw_only=True)
class CustomConfig(ModelConfig):
    name: str = "custom"
    target: str = ""
    """``package.module.factory``: returns the network, an ``nn.Sequential`` of layers."""
    args: Any = None
    """Named arguments of the factory, ``{name: value, ..}``; None are no arguments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.args = named_call("model", self.target, self.args, "factory", "factory")


MODELS = (
    MLPConfig,
    CNNConfig,
    VGGConfig,
    FastCNNConfig,
    ResNetConfig,
    ResNet50Config,
    ResNet20Config,
    ResNet32Config,
    TransformerConfig,
    GPTConfig,
    CustomConfig,
)


@dataclass(kw_only=True)
class OwnModelConfig(ModelConfig):
    """Record of a network that a script passed to a Trainer, for run directories and hashes."""

    name: str = "custom"
    target: str = ""
    """Name of the factory, or the kind of the module that was built before."""
    digest: str | None = None
    """sha256 of the initial parameters and buffers of a module that was built before."""
