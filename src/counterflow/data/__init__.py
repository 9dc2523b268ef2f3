"""Training and test data: inputs and labels as pure functions of (configuration, seed, batch)."""

from collections.abc import Callable

from counterflow.config import DataConfig
from counterflow.data import builtin, image_files, public_sets
from counterflow.data.dataset import Dataset, Split
from counterflow.data.sources import Source, as_dataset, as_split

__all__ = ["LOADERS", "Dataset", "Source", "Split", "as_dataset", "as_split", "load"]

LOADERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "digits": builtin.digits,
    "fashion_mnist": public_sets.load,
    "mnist": public_sets.load,
    "cifar10": public_sets.load,
    "cifar100": public_sets.load,
    "reverse": builtin.reverse,
    "image_folder": image_files.load,
}


def load(config: DataConfig) -> Dataset:
    """Load the data set ``config.name`` and split it as configured.

    Raises ``ValueError`` if its files are missing or damaged.
    """
    return LOADERS[config.name](config).split_validation(config.validation, config.limit)
