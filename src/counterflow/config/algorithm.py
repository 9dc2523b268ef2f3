"""Options that learning rules share; the options of one rule are in its module."""

from dataclasses import dataclass
from typing import ClassVar

from counterflow.config.validators import NamedOptions, Options, above, at_least, checked, one_of, rate, size


@dataclass(kw_only=True)
class HeadConfig(Options, key="algorithm.head"):
    """The head by which a local rule reads a block's output: convolutions, pooling, layer norm.

    One family for all local rules: BLL's latent head, Pred-Sim's classifier and AL's bridge begin with it.
    """

    convolutions: int = checked(3, size, 0)
    """Strided 3x3 convolutions before the pooling of feature maps, fewer where a map is one pixel before; 0 is a
    pooled head without parameters."""
    width: int = checked(64, size, 1)
    """Channels of these convolutions."""
    dim: int = checked(512, size, 1)
    """Feature maps are pooled until the head has at most so many dimensions."""


@dataclass(kw_only=True)
class LatentConfig(Options, key="algorithm.latent"):
    """The distribution over a block's latent ``z_k``, whose natural parameters the head gives."""

    family: str = checked("gaussian", one_of, ("gaussian", "bernoulli", "categorical"))
    categories: int = checked(8, size, 2)
    """Size of one categorical variable; the latent is a vector of several (``family=categorical`` only)."""


@dataclass(kw_only=True)
class FeedbackConfig(Options, key="algorithm.feedback"):
    """The feedback block ``g_k`` that maps the code book of block k to that of block k-1."""

    kind: str = checked("mlp", one_of, ("linear", "mlp"))
    hidden: int = checked(128, size, 1)
    """Width of the hidden layer (``kind=mlp`` only)."""
    norm: float = checked(1.0, above, 0)
    """Root mean square norm of the codes of a book, after centring over the classes."""
    lr_scale: float = checked(0.1, rate)
    """Learning rate of phi as a multiple of that of theta."""
    refresh: int = checked(1, at_least, 1)
    """A new code book goes down every so many batches; labels go down with every batch."""


@dataclass(kw_only=True)
class AlgorithmConfig(NamedOptions, key="algorithm"):
    """A learning rule and its options; each module of ``algorithms/`` brings its own."""

    predicts_down: ClassVar[bool] = False
    """Labels enter at the bottom, no targets come down while training, and the prediction comes out at the bottom."""
