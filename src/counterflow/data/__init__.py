"""Training and test data: inputs and labels as pure functions of (configuration, seed, batch)."""

from collections.abc import Callable

from counterflow.config import DataConfig
from counterflow.data import builtin, cifar, image_folder, mnist
from counterflow.data.dataset import Dataset, Split
from counterflow.data.sources import Source, as_dataset, as_split

__all__ = ["LOADERS", "Dataset", "Source", "Split", "as_dataset", "as_split", "load"]

LOADERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": builtin.digits,
    "fashion_mnist": mnist.load,
    "mnist": mnist.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "reverse": builtin.reverse,
    "image_folder": image_folder.load,
}


def load(config: DataConfig) -> Dataset:
    """Load the data set ``config.name`` and split it as configured.

    Raises ``ValueError`` if its files are missing or damaged.
    """
    return LOADERS[config.name](config).split_validation(config.validation, config.limit)
