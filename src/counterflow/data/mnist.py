"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels, in ten classes."""

import os
from pathlib import Path

from counterflow.config import DataConfig
from counterflow.data import idx
from counterflow.data.dataset import Dataset, Split
from counterflow.data.download import download

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""What torchvision calls the data set, and its folder below the root."""


def load(config: DataConfig) -> Dataset:
    """Images uint8 ``[M, 1, 28, 28]``, from four files in ``data.root`` or where torchvision puts them below it.

    The files may be gzip or unpacked. ``ValueError`` where a file is missing, damaged or cannot be downloaded.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        train_images, train_labels, test_images, test_labels = _paths(root, TORCHVISION[config.name], config.download)
        train, test = _split(train_images, train_labels), _split(test_images, test_labels)
        return Dataset(train, test, classes=10)
    except ValueError as error:
        raise ValueError(
            f"data.root={config.root}: {error}; point data.root to a folder with the four files of "
            f"data={config.name}, or to a new one with data.download=true"
        ) from error


def _paths(root: Path, name: str, fetch: bool) -> list[Path]:
    """The four files, downloaded if need be and allowed."""
    raw = f"{name}/raw"
    found = max(_find(root), _find(root / raw), key=len)
    if len(found) < len(FILES) and fetch:
        from torchvision import datasets  # seconds of import, for every process that downloads nothing

        download(lambda folder: getattr(datasets, name)(folder, download=True), root, raw, FILES)
        found = _find(root / raw)
    missing = [file for file in FILES if file not in found]
    if missing:
        raise ValueError(f"{missing[0]}[.gz] is missing")
    return [found[file] for file in FILES]


def _find(folder: Path) -> dict[str, Path]:
    """Those of the four files that ``folder`` has, by name."""
    candidates = [(name, folder / (name + suffix)) for name in FILES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if os.path.isfile(path)}


def _split(images: Path, labels: Path) -> Split:
    pixels, classes = idx.read(images, ndim=3), idx.read(labels, ndim=1)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{labels.name} has {len(classes)} labels: must be {len(pixels)}, one an image of {images.name}"
        )
    return Split(pixels.unsqueeze(1), classes.long())
