"""Training and test data: images and labels as pure functions of (configuration, seed, batch)."""

from collections.abc import Callable

from counterflow.config import DataConfig
from counterflow.data import digits, fashion_mnist
from counterflow.data.dataset import Dataset

LOADERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": digits.load,
    "fashion_mnist": fashion_mnist.load,
}


def load(config: DataConfig) -> Dataset:
    """The data set ``config.name``. ``ValueError`` where its files are missing or damaged."""
    return LOADERS[config.name](config)
