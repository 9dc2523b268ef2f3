"""Training and test data: inputs and labels as pure functions of (configuration, seed, batch)."""

from collections.abc import Callable

from counterflow.config import DataConfig
from counterflow.data import cifar, digits, image_folder, mnist, reverse
from counterflow.data.dataset import Dataset

LOADERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": digits.load,
    "fashion_mnist": mnist.load,
    "mnist": mnist.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "reverse": reverse.load,
    "image_folder": image_folder.load,
}


def load(config: DataConfig) -> Dataset:
    """The data set ``config.name``, split as configured. ``ValueError`` where its files are missing or damaged."""
    return LOADERS[config.name](config).split_validation(config.validation, config.limit)
