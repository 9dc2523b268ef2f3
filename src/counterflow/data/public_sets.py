"""Public data sets of images: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100.

CIFAR-10 may also be image grids: lossless images, each a grid of tiles of one class, listed in ``manifest.json``.
"""

import gzip
import hashlib
import json
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data import image_files
from counterflow.data.dataset import Dataset, Split

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""Name of the data set in torchvision, and of its folder below the root."""
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
MANIFEST = "manifest.json"
SIDE = 32
"""Pixels along each side of a tile."""
_UINT8 = 0x0800
"""Magic number of an idx file of bytes, without its number of dimensions."""


def load(config: DataConfig) -> Dataset:
    """Read 60,000 training and 10,000 test images of MNIST, or 50,000 and 10,000 of CIFAR, below ``data.root``.

    MNIST is uint8 ``[M, 1, 28, 28]``, from four files in the root or in torchvision's folder below it, each gzip or
    unpacked. CIFAR is uint8 ``[M, 3, 32, 32]``, from torchvision's folder of the Python version; CIFAR-10 is also read
    from image grids in the root. Raises ``ValueError`` if a file is missing, damaged or cannot be downloaded.
    """
    root = Path(os.path.expanduser(config.root))
    files = "the four files" if config.name in TORCHVISION else "the files"
    try:
        if config.name in TORCHVISION:
            paths = _paths(root, TORCHVISION[config.name], config.download)
            train, test = _read_pair(*paths[:2]), _read_pair(*paths[2:])
        elif config.name == "cifar10" and (root / MANIFEST).is_file():
            train, test = _read_grids(root, "train"), _read_grids(root, "test")
        else:
            train, test = _read_pickles(root, config.name, config.download)
        return Dataset(train, test, CLASSES[config.name])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.root={config.root}: {error}; point data.root to a folder with {files} of "
            f"data={config.name}, or to a new one with data.download=true"
        ) from error


def _paths(root: Path, name: str, fetch: bool) -> list[Path]:
    """The four files, downloaded if they are missing and ``fetch`` allows it."""
    raw = f"{name}/raw"
    paths = max(_find(root), _find(root / raw), key=len)
    if len(paths) < len(FILES) and fetch:
        from torchvision import datasets  # takes seconds, so processes that download nothing skip it

        _download(lambda folder: getattr(datasets, name)(folder, download=True), root, raw, FILES)
        paths = _find(root / raw)
    missing = [file for file in FILES if file not in paths]
    if missing:
        raise ValueError(f"{missing[0]}[.gz] is missing")
    return [paths[file] for file in FILES]


def _find(folder: Path) -> dict[str, Path]:
    """Paths of the files in ``folder``, by name; an unpacked file comes before its gzip."""
    candidates = [(name, folder / (name + suffix)) for name in FILES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if os.path.isfile(path)}


def _read_pair(images: Path, labels: Path) -> Split:
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


def _read_pickles(root: Path, name: str, fetch: bool) -> tuple[Split, Split]:
    """Read torchvision's files, downloaded if they are missing or damaged and ``fetch`` allows it."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    cifar = getattr(datasets, name.upper())
    folder = root / cifar.base_folder
    files = dict([*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])])
    wrong = [file for file, md5 in files.items() if not check_integrity(folder / file, md5)]
    if wrong and fetch:
        _download(lambda scratch: cifar(scratch, download=True), root, cifar.base_folder, files)
    elif wrong:
        fault = "is damaged: its md5 is not that of the original" if (folder / wrong[0]).exists() else "is missing"
        raise ValueError(f"{cifar.base_folder}/{wrong[0]} {fault}")
    train, test = (cifar(root, train=train) for train in (True, False))
    return _split(train.data, train.targets), _split(test.data, test.targets)


def _split(images: NDArray[np.uint8], labels: list[int]) -> Split:
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


@dataclass(frozen=True)
class ImageGrid:
    """Entry of the manifest: ``columns * rows`` tiles, row by row.

    ``sha256`` is the hash of their pixels, uint8 ``[M, 32, 32, 3]``.
    """

    file: str
    split: str
    class_index: int
    columns: int
    rows: int
    sha256: str


def _read_grids(folder: Path, split: str) -> Split:
    """Read the images of ``split``, uint8 ``[M, 3, 32, 32]``, in the order of the manifest.

    Raises ``ValueError`` naming the file that is missing or damaged, and the fault.
    """
    grids = [grid for grid in _manifest(folder) if grid.split == split]
    if not grids:
        raise ValueError(f"{MANIFEST} lists no file of split {split}")
    tiles = [_tiles(folder, grid) for grid in grids]
    labels = [torch.full((len(part),), grid.class_index) for part, grid in zip(tiles, grids, strict=True)]
    return Split(torch.cat(tiles).permute(0, 3, 1, 2).contiguous(), torch.cat(labels))


def _manifest(folder: Path) -> list[ImageGrid]:
    try:
        return [
            ImageGrid(**{field.name: field.type(entry[field.name]) for field in fields(ImageGrid)})  # type: ignore[operator]
            for entry in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from error


def _tiles(folder: Path, grid: ImageGrid) -> Tensor:
    """Read the tiles of one grid, uint8 ``[M, 32, 32, 3]``."""
    pixels = image_files.read(folder, grid.file)
    height, width = grid.rows * SIDE, grid.columns * SIDE
    if pixels.shape != (height, width, 3):
        raise ValueError(f"{grid.file} has shape {list(pixels.shape)}: {MANIFEST} says that it is {[height, width, 3]}")
    tiles = pixels.view(grid.rows, SIDE, grid.columns, SIDE, 3).transpose(1, 2).reshape(-1, SIDE, SIDE, 3)
    if hashlib.sha256(tiles.numpy().tobytes()).hexdigest() != grid.sha256:
        raise ValueError(f"{grid.file} is damaged: the sha256 of its pixels is not the one in {MANIFEST}")
    return tiles


def _download(fetch: Callable[[str], object], root: Path, folder: str, names: Iterable[str]) -> None:
    """Download the files ``names`` into ``folder`` below ``root``.

    Args:
        fetch: Downloads the files into ``folder`` below the root that is its argument.
        root: Created if it is missing.
        folder: Relative to ``root``.
        names: Files that are moved into place; others are deleted.

    Raises:
        ValueError: If the download fails.
    """
    try:
        (root / folder).mkdir(parents=True, exist_ok=True)
        # A file appears under its name only when it is complete.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            fetch(scratch)
            for name in names:
                Path(scratch, folder, name).replace(root / folder / name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(f"the download failed: {' '.join(str(error).split())}") from error
