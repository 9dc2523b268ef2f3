"""Options that learning rules share; the options of one rule are in its module."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from counterflow.config.validators import above, at_least, one_of, rate, size


@dataclass(kw_only=True)
class HeadConfig:
    """The head by which a local rule reads a block's output: convolutions, pooling, layer norm.

    One family for all local rules: BLL's latent head, Pred-Sim's classifier and AL's bridge begin with it.
    """

    convolutions: int = 3
    """Strided 3x3 convolutions before the pooling of feature maps, fewer where a map is one pixel before; 0 is a
    pooled head without parameters."""
    width: int = 64
    """Channels of these convolutions."""
    dim: int = 512
    """Feature maps are pooled until the head has at most so many dimensions."""

    def __post_init__(self) -> None:
        size("algorithm.head.convolutions", self.convolutions, 0)
        size("algorithm.head.width", self.width, 1)
        size("algorithm.head.dim", self.dim, 1)


@dataclass(kw_only=True)
class LatentConfig:
    """The distribution over a block's latent ``z_k``, whose natural parameters the head gives."""

    family: str = "gaussian"
    categories: int = 8
    """Size of one categorical variable; the latent is a vector of several (``family=categorical`` only)."""

    def __post_init__(self) -> None:
        one_of("algorithm.latent.family", self.family, ("gaussian", "bernoulli", "categorical"))
        size("algorithm.latent.categories", self.categories, 2)


@dataclass(kw_only=True)
class FeedbackConfig:
    """The feedback block ``g_k`` that maps the code book of block k to that of block k-1."""

    kind: str = "mlp"
    hidden: int = 128
    """Width of the hidden layer (``kind=mlp`` only)."""
    norm: float = 1.0
    """Root mean square norm of the codes of a book, after centring over the classes."""
    lr_scale: float = 0.1
    """Learning rate of phi as a multiple of that of theta."""
    refresh: int = 1
    """A new code book goes down every so many batches; labels go down with every batch."""

    def __post_init__(self) -> None:
        one_of("algorithm.feedback.kind", self.kind, ("linear", "mlp"))
        size("algorithm.feedback.hidden", self.hidden, 1)
        above("algorithm.feedback.norm", self.norm, 0)
        rate("algorithm.feedback.lr_scale", self.lr_scale)
        at_least("algorithm.feedback.refresh", self.refresh, 1)


@dataclass(kw_only=True)
class AlgorithmConfig:
    """A learning rule and its options; each module of ``algorithms/`` brings its own."""

    name: str = MISSING

    predicts_down: ClassVar[bool] = False
    """Labels enter at the bottom, no targets come down while training, and the prediction comes out at the bottom."""

    def __post_init__(self) -> None:
        one_of("algorithm.name", self.name, (type(self).name,))
