"""Callbacks that log a run elsewhere, by name. Only those that are asked for are imported."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from counterflow.metrics.callback import Callback

_EXTRAS = {"tensorboard": "counterflow", "wandb": "counterflow[wandb]"}
"""Arguments of ``pip install`` for the package of each logger, which has the same name."""


def check_installed(names: Iterable[str]) -> None:
    """Raise ``ValueError`` if a package of the loggers ``names`` is not installed."""
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            raise ValueError(
                f"run.loggers: {name} is not installed, allowed after pip install '{_EXTRAS[name]}'"
            ) from None


def make_logger(name: str) -> Callback:
    """The logger ``name``, ``tensorboard`` or ``wandb``."""
    if name == "wandb":
        from counterflow.metrics.wandb import WandbLogger

        return WandbLogger()
    from counterflow.metrics.tensorboard import TensorBoardLogger

    return TensorBoardLogger()
