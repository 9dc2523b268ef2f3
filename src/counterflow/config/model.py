"""Options of networks."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from counterflow.config.validators import LARGEST, fraction, one_of, size


@dataclass(kw_only=True)
class ModelConfig:
    name: str = MISSING
    cut: Any = "flops"
    """Split of layers into blocks: ``flops``, ``parameters``, ``profile``, or the number of layers of every block."""

    def __post_init__(self) -> None:
        if isinstance(self.cut, str):
            one_of("model.cut", self.cut, ("flops", "parameters", "profile"))
        elif not (isinstance(self.cut, list) and self.cut and all(type(c) is int and c > 0 for c in self.cut)):
            raise ValueError(f"model.cut={self.cut}: allowed are flops, parameters, profile, or a list of layer counts")


@dataclass(kw_only=True)
class MLPConfig(ModelConfig):
    name: str = "mlp"
    width: int = 256
    hidden: int = 4
    """Number of hidden layers; the output layer comes on top, so there are ``hidden + 1`` layers to cut."""
    norm: str = "layer"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, ("mlp",))
        size("model.width", self.width, 1)
        size("model.hidden", self.hidden, 1)
        one_of("model.norm", self.norm, ("none", "layer", "batch"))
        fraction("model.dropout", self.dropout)


@dataclass(kw_only=True)
class CNNConfig(ModelConfig):
    name: str = "cnn"
    channels: list[int] = field(default_factory=lambda: [32, 64, 64, 128, 128, 128])
    """Output channels of every convolution."""
    strides: list[int] = field(default_factory=lambda: [1, 2, 1, 2, 1, 1])
    """Stride of every convolution."""
    norm: str = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, ("cnn",))
        if not self.channels or not 1 <= min(self.channels) <= max(self.channels) <= LARGEST:
            raise ValueError(f"model.channels={self.channels}: must be a list of positive numbers")
        if len(self.strides) != len(self.channels) or not 1 <= min(self.strides) <= max(self.strides) <= LARGEST:
            raise ValueError(
                f"model.strides={self.strides}: must be {len(self.channels)} positive numbers, one a convolution"
            )
        one_of("model.norm", self.norm, ("none", "batch"))
        fraction("model.dropout", self.dropout)


@dataclass(kw_only=True)
class VGGConfig(ModelConfig):
    name: str = "vgg"
    channels: list[int] = field(default_factory=lambda: [128, 256, 256, 512, 512, 512])
    """Output channels of every convolution."""
    pools: list[int] = field(default_factory=lambda: [1, 2, 1, 2, 2, 2])
    """Side of the max pooling after every convolution; 1 is none."""
    hidden: list[int] = field(default_factory=lambda: [1024])
    """Width of every hidden layer between the convolutions and the output layer."""
    width: float = 1.0
    """Multiplies ``channels``."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, ("vgg",))
        if not self.channels or not 1 <= min(self.channels) <= max(self.channels) <= LARGEST:
            raise ValueError(f"model.channels={self.channels}: must be a list of positive numbers")
        if len(self.pools) != len(self.channels) or not 1 <= min(self.pools) <= max(self.pools) <= LARGEST:
            raise ValueError(
                f"model.pools={self.pools}: must be {len(self.channels)} positive numbers, one a convolution"
            )
        if not 1 <= min(self.hidden, default=1) <= max(self.hidden, default=1) <= LARGEST:
            raise ValueError(f"model.hidden={self.hidden}: must be a list of positive numbers, or []")
        if not 0 < self.width <= LARGEST:
            raise ValueError(f"model.width={self.width}: must be greater than 0 and at most {LARGEST}")
        fraction("model.dropout", self.dropout)


@dataclass(kw_only=True)
class ResNetConfig(ModelConfig):
    name: str = "resnet18"
    stages: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    """Residual blocks of every stage; each stage after the first halves the pixels and doubles the channels."""
    width: int = 64
    """Channels of the first stage (a quarter of its outputs where the blocks are bottlenecks)."""
    stride: int = 1
    """Stride of the stem's convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, (type(self).name,))
        if not self.stages or not 1 <= min(self.stages) <= max(self.stages) <= LARGEST:
            raise ValueError(f"model.stages={self.stages}: must be a list of positive numbers")
        size("model.width", self.width, 1)
        size("model.stride", self.stride, 1)


@dataclass(kw_only=True)
class ResNet50Config(ResNetConfig):
    name: str = "resnet50"
    stages: list[int] = field(default_factory=lambda: [3, 4, 6, 3])


@dataclass(kw_only=True)
class ResNet20Config(ResNetConfig):
    name: str = "resnet20"
    stages: list[int] = field(default_factory=lambda: [3, 3, 3])
    width: int = 16


@dataclass(kw_only=True)
class ResNet32Config(ResNet20Config):
    name: str = "resnet32"
    stages: list[int] = field(default_factory=lambda: [5, 5, 5])


@dataclass(kw_only=True)
class TransformerConfig(ModelConfig):
    name: str = "transformer"
    layers: int = 4
    """Number of encoder layers; embedding and output layer come on top, so there are ``layers + 2`` layers to cut."""
    heads: int = 1
    width: int = 64
    hidden: int = 128
    """Width of the hidden layer in every encoder layer."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, ("transformer",))
        size("model.layers", self.layers, 1)
        size("model.heads", self.heads, 1)
        size("model.width", self.width, 1)
        if self.width % self.heads:
            raise ValueError(f"model.heads={self.heads}: must divide model.width={self.width}")
        size("model.hidden", self.hidden, 1)
        fraction("model.dropout", self.dropout)


@dataclass(kw_only=True)
class CustomConfig(ModelConfig):
    name: str = "custom"
    target: str = ""
    """``package.module.factory``: returns the network, an ``nn.Sequential`` of layers."""
    args: Any = None
    """Named arguments of the factory, ``{name: value, ..}``; None are no arguments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.name", self.name, ("custom",))
        names = self.target.split(".")
        if len(names) < 2 or not all(name.isidentifier() for name in names):
            raise ValueError(f"model.target={self.target}: must be the name of a factory, package.module.factory")
        if self.args is None:
            self.args = {}
        if not (isinstance(self.args, dict) and all(isinstance(name, str) for name in self.args)):
            raise ValueError(f"model.args={self.args}: must be named arguments, {{name: value, ..}}")


MODELS = (
    MLPConfig,
    CNNConfig,
    VGGConfig,
    ResNetConfig,
    ResNet50Config,
    ResNet20Config,
    ResNet32Config,
    TransformerConfig,
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
