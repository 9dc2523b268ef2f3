"""Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels, in ten classes of clothes."""

import os
import tempfile
from http.client import HTTPException
from pathlib import Path

from counterflow.config import DataConfig
from counterflow.data import idx
from counterflow.data.dataset import Dataset, Split

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
RAW = Path("FashionMNIST", "raw")
"""Where torchvision keeps the files below its root."""


def load(config: DataConfig) -> Dataset:
    """Images uint8 ``[M, 1, 28, 28]``, from four files in ``data.root`` or where torchvision puts them below it.

    The files may be gzip or unpacked. ``ValueError`` where a file is missing, damaged or cannot be downloaded.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        train_images, train_labels, test_images, test_labels = _paths(root, config.download)
        train, test = _split(train_images, train_labels), _split(test_images, test_labels)
        return Dataset.of(train, test, classes=10)
    except ValueError as error:
        raise ValueError(
            f"data.root={config.root}: {error}; point data.root to a folder with the four Fashion-MNIST files, "
            "or to a new one with data.download=true"
        ) from error


def _paths(root: Path, download: bool) -> list[Path]:
    """The four files, downloaded if need be and allowed."""
    found = max(_find(root), _find(root / RAW), key=len)
    if len(found) < len(FILES) and download:
        _download(root)
        found = _find(root / RAW)
    missing = [name for name in FILES if name not in found]
    if missing:
        raise ValueError(f"{missing[0]}[.gz] is missing")
    return [found[name] for name in FILES]


def _find(folder: Path) -> dict[str, Path]:
    """Those of the four files that ``folder`` has, by name."""
    candidates = [(name, folder / (name + suffix)) for name in FILES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if os.path.isfile(path)}


def _download(root: Path) -> None:
    """Put the files below ``root`` as torchvision does."""
    from torchvision.datasets import FashionMNIST  # seconds of import, for every process that downloads nothing

    try:
        (root / RAW).mkdir(parents=True, exist_ok=True)
        # Every rank may download at the same time: a file appears under its name only when it is whole.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            FashionMNIST(scratch, download=True)
            for name in FILES:
                (Path(scratch) / RAW / name).replace(root / RAW / name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(f"the download failed: {' '.join(str(error).split())}") from error


def _split(images: Path, labels: Path) -> Split:
    pixels, classes = idx.read(images, ndim=3), idx.read(labels, ndim=1)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{labels.name} has {len(classes)} labels: must be {len(pixels)}, one an image of {images.name}"
        )
    return Split(pixels.unsqueeze(1), classes.long())
