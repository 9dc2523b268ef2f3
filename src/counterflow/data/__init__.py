"""Training and test data: inputs and labels as pure functions of (configuration, seed, batch)."""

from collections.abc import Callable

from counterflow.config import DataConfig
from counterflow.data import builtin, image_files, text
from counterflow.data.dataset import Dataset, Split
from counterflow.data.sources import Source, as_dataset, as_split

__all__ = ["LOADERS", "Dataset", "Source", "Split", "as_dataset", "as_split", "load"]

LOADERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": builtin.digits,
    "fashion_mnist": image_files.load,
    "mnist": image_files.load,
    "cifar10": image_files.load,
    "cifar100": image_files.load,
    "reverse": builtin.reverse,
    "image_folder": image_files.load,
    "text": text.load,
    "stdlib": text.load,
}


def load(config: DataConfig) -> Dataset:
    """Load the data set ``config.name`` and split it as configured.

    Raises ``ValueError`` if its files are missing or damaged.
    """
    dataset = LOADERS[config.name](config)
    return dataset if dataset.content else dataset.split_validation(config.validation, config.limit)
