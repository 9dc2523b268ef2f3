"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 grey pixels, in ten classes."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.download import download

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""Name of the data set in torchvision, and of its folder below the root."""
_UINT8 = 0x0800
"""Magic number of an idx file of bytes, without its number of dimensions."""


def load(config: DataConfig) -> Dataset:
    """Read images uint8 ``[M, 1, 28, 28]`` from four files in ``data.root`` or in torchvision's folder below it.

    The files may be gzip or unpacked. Raises ``ValueError`` if a file is missing, damaged or cannot be downloaded.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        train_images, train_labels, test_images, test_labels = _paths(root, TORCHVISION[config.name], config.download)
        return Dataset(_split(train_images, train_labels), _split(test_images, test_labels), classes=10)
    except ValueError as error:
        raise ValueError(
            f"data.root={config.root}: {error}; point data.root to a folder with the four files of "
            f"data={config.name}, or to a new one with data.download=true"
        ) from error


def _paths(root: Path, name: str, fetch: bool) -> list[Path]:
    """The four files, downloaded if they are missing and ``fetch`` allows it."""
    raw = f"{name}/raw"
    paths = max(_find(root), _find(root / raw), key=len)
    if len(paths) < len(FILES) and fetch:
        from torchvision import datasets  # takes seconds, so processes that download nothing skip it

        download(lambda folder: getattr(datasets, name)(folder, download=True), root, raw, FILES)
        paths = _find(root / raw)
    missing = [file for file in FILES if file not in paths]
    if missing:
        raise ValueError(f"{missing[0]}[.gz] is missing")
    return [paths[file] for file in FILES]


def _find(folder: Path) -> dict[str, Path]:
    """Paths of the files in ``folder``, by name; an unpacked file comes before its gzip."""
    candidates = [(name, folder / (name + suffix)) for name in FILES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if os.path.isfile(path)}


def _split(images: Path, labels: Path) -> Split:
    pixels, classes = _read_idx(images, ndim=3), _read_idx(labels, ndim=1)
    if len(pixels) != len(classes):
        raise ValueError(
            f"{labels.name} has {len(classes)} labels: must be {len(pixels)}, one an image of {images.name}"
        )
    return Split(pixels.unsqueeze(1), classes.long())


def _read_idx(path: Path, ndim: int) -> Tensor:
    """Read a uint8 tensor of ``ndim`` dimensions from a file of the idx format; ``.gz`` files are unpacked.

    torchvision's reader knows no gzip, checks with ``assert``, and names neither the file nor the fault. This one
    raises ``ValueError`` naming both.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    header = struct.Struct(f">{1 + ndim}I")
    if len(data) < header.size:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be at least {header.size}, those of its header")
    magic, *shape = header.unpack_from(data)
    if magic != _UINT8 + ndim:
        raise ValueError(f"{path.name} has magic number {magic}: must be {_UINT8 + ndim}")
    if not all(shape):
        raise ValueError(f"{path.name} has shape {shape}: must not be empty")
    size = header.size + math.prod(shape)
    if len(data) != size:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be {size} for shape {shape}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.size).view(shape)
