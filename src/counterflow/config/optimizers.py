"""Options of optimizers: one optimizer for every block."""

# ruff: noqa: RUF009  # `checked` makes a field

from dataclasses import dataclass

from counterflow.config.validators import NamedOptions, at_least, checked, fraction, one_of, rate, size


@dataclass(kw_only=True)
class OptimizerConfig(NamedOptions, key="optimizer"):
    lr: float = checked(1e-3, rate)
    weight_decay: float = checked(0.0, rate)
    schedule: str = checked("cosine", one_of, ("constant", "cosine", "linear"))
    """Learning rate as a function of the batch index: ``constant``, ``cosine`` or ``linear`` (both fall to 0)."""
    warmup: int = checked(0, at_least, 0)
    """Batches of linear warm-up."""
    bias_lr_scale: float = checked(1.0, rate)
    """Learning rate of biases, and of the scales and shifts of norms, as a multiple of that of weights."""
    bias_decay: bool = True
    """Weight decay of biases and norms too."""
    clip: float = checked(0.0, rate)
    """Largest norm of a gradient, which is scaled down to it: in local rules that of a block, and apart that of its
    feedback; in backprop that of the network. 0 is no limit."""
    floor: float = checked(0.0, fraction)
    """Learning rate at the end of a schedule that falls, as a share of ``lr``."""
    average: float = checked(0.0, fraction)
    """Decay of an exponential moving average of the weights, by which blocks are evaluated and which a finished run
    gives away; 0 is none. Messages and learning use the weights themselves."""


@dataclass(kw_only=True)
class SGD(OptimizerConfig):
    name: str = "sgd"
    lr: float = checked(0.1, rate)
    momentum: float = checked(0.9, fraction)
    nesterov: bool = False
    delay_corrected: bool = False
    """Nesterov's look-ahead corrects gradients that come late, with ``momentum`` as its coefficient (AsyncPP, equation
    10 of arXiv 2505.01099): for ``schedule=pipedream``, with ``momentum=0.99``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_corrected and self.nesterov:
            raise ValueError("optimizer.delay_corrected=true: is Nesterov's, allowed for optimizer.nesterov is false")
        if self.delay_corrected and not self.momentum:
            raise ValueError("optimizer.delay_corrected=true: needs optimizer.momentum greater than 0")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true: needs optimizer.momentum greater than 0")


def _betas(key: str, values: list[float]) -> None:
    if len(values) != 2:
        raise ValueError(f"{key}={values}: must be two numbers")
    for beta in values:
        fraction(key, beta)


@dataclass(kw_only=True)
class AdamW(OptimizerConfig):
    name: str = "adamw"
    betas: list[float] = checked([0.9, 0.999], _betas)
    delay_corrected: bool = False
    """The same look-ahead in Adam's form, which is NAdam, as in AsyncPP's experiments: for ``schedule=pipedream``, with
    ``betas=[0.99,0.999]``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_corrected and not self.betas[0]:
            raise ValueError("optimizer.delay_corrected=true: needs a first number of optimizer.betas greater than 0")


@dataclass(kw_only=True)
class Muon(OptimizerConfig):
    """Muon for the weights of convolutions, and of linear layers in forward blocks; AdamW for all else: the network's
    last layer, embeddings, norms, biases, feedback blocks, linear layers that only a rule brings."""

    name: str = "muon"
    lr: float = checked(0.02, rate)
    momentum: float = checked(0.95, fraction)
    nesterov: bool = True
    iterations: int = checked(5, size, 1)
    """Steps of Newton-Schulz's iteration."""
    adamw_lr: float = checked(1e-3, rate)
    """Learning rate of AdamW's part."""
    betas: list[float] = checked([0.9, 0.999], _betas)
    """AdamW's."""


OPTIMIZERS = (AdamW, Muon, SGD)
