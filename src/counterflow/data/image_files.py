"""Data sets of image files below ``data.root``: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, and the user's own.

CIFAR-10 may also be image grids: lossless images, each a grid of tiles of one class, listed in ``manifest.json``. Own
images are in folders by class, or in one ``.npz`` file of numpy, which may also be ``data.root`` itself, or in ``.npy``
files.
"""

import gzip
import hashlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.image_items import ImageItems, read_image
from counterflow.data.items import Spool, in_file
from counterflow.data.mapped_images import MappedImages, mapped_member

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""Name of the data set in torchvision, and of its folder below the root."""
CLASS_NAMES = {
    "mnist": [str(digit) for digit in range(10)],
    "fashion_mnist": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
"""Names of the labels, in their order. CIFAR-100's are in its files."""
MANIFEST = "manifest.json"
SIDE = 32
"""Pixels along each side of a tile."""
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""Names of own arrays."""
_GROUP = 1000
"""Names of files that are collected at a time."""
_UINT8 = 0x0800
"""Magic number of an idx file of bytes, without its number of dimensions."""
_GRID: dict[str, Callable[[Any], Any]] = {
    "file": str,
    "split": str,
    "class_index": int,
    "columns": int,
    "rows": int,
    "sha256": str,
}
"""Entry of the manifest: ``columns * rows`` tiles, row by row; ``sha256`` is of their pixels, ``[M, 32, 32, 3]``."""


def load(config: DataConfig) -> Dataset:
    """Read the data set ``config.name`` below ``data.root``.

    MNIST is 60,000 training and 10,000 test images, uint8 ``[M, 1, 28, 28]``, from four files in the root or in
    torchvision's folder below it, each gzip or unpacked. CIFAR is 50,000 and 10,000, uint8 ``[M, 3, 32, 32]``, from
    torchvision's folder of the Python version; CIFAR-10 is also read from image grids in the root. Own images are uint8
    ``[M, C, H, W]``, all of one size and either grey or in colour.

    Raises ``ValueError`` if a file is missing, is damaged, cannot be downloaded or differs from the others, or if a
    root of own images holds neither form or both.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        if config.name == "image_folder":
            return _read_own(root, config.workers > 0)
        if config.name in TORCHVISION:
            paths = _paths(root, TORCHVISION[config.name], config.download)
            train, test = _read_pair(*paths[:2]), _read_pair(*paths[2:])
        elif config.name == "cifar10" and (root / MANIFEST).is_file():
            train, test = _read_grids(root, "train"), _read_grids(root, "test")
        else:
            return _read_pickles(root, config.name, config.download)
        names = CLASS_NAMES[config.name]
        return Dataset(train, test, len(names), class_names=names)
    except (OSError, ValueError) as error:
        message = f"data.root={config.root}: {error}"
        if config.name != "image_folder":
            files = "the four files" if config.name in TORCHVISION else "the files"
            message += (
                f"; point data.root to a folder with {files} of data={config.name}, or to a new one with "
                "data.download=true"
            )
        raise ValueError(message) from error


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
    header = 4 * (1 + ndim)
    if len(data) < header:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be at least {header}, those of its header")
    magic, *shape = np.frombuffer(data, ">u4", 1 + ndim).tolist()
    if magic != _UINT8 + ndim:
        raise ValueError(f"{path.name} has magic number {magic}: must be {_UINT8 + ndim}")
    if not all(shape):
        raise ValueError(f"{path.name} has shape {shape}: must not be empty")
    size = header + math.prod(shape)
    if len(data) != size:
        raise ValueError(f"{path.name} has {len(data)} bytes: must be {size} for shape {shape}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape)


def _read_pickles(root: Path, name: str, fetch: bool) -> Dataset:
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
    splits = _split(train.data, train.targets), _split(test.data, test.targets)
    return Dataset(*splits, len(train.classes), class_names=train.classes)


def _read_grids(folder: Path, split: str) -> Split:
    """Read the images of ``split``, uint8 ``[M, 3, 32, 32]``, in the order of the manifest.

    Raises ``ValueError`` naming the file that is missing or damaged, and the fault.
    """
    grids = [grid for grid in _manifest(folder) if grid["split"] == split]
    if not grids:
        raise ValueError(f"{MANIFEST} lists no file of split {split}")
    tiles = [_tiles(folder, grid) for grid in grids]
    labels = [torch.full((len(part),), grid["class_index"]) for part, grid in zip(tiles, grids, strict=True)]
    return Split(torch.cat(tiles).permute(0, 3, 1, 2).contiguous(), torch.cat(labels))


def _manifest(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [{key: kind(entry[key]) for key, kind in _GRID.items()} for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from error


def _tiles(folder: Path, grid: dict[str, Any]) -> Tensor:
    """Read the tiles of one grid, uint8 ``[M, 32, 32, 3]``."""
    image, columns, rows = read_image(folder, grid["file"]), grid["columns"], grid["rows"]
    expected = [rows * SIDE, columns * SIDE, 3]
    if list(image.shape) != expected:
        raise ValueError(f"{grid['file']} has shape {list(image.shape)}: {MANIFEST} says that it is {expected}")
    tiles = image.view(rows, SIDE, columns, SIDE, 3).transpose(1, 2).reshape(-1, SIDE, SIDE, 3)
    if hashlib.sha256(tiles.numpy().tobytes()).hexdigest() != grid["sha256"]:
        raise ValueError(f"{grid['file']} is damaged: the sha256 of its pixels is not the one in {MANIFEST}")
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


def _read_own(root: Path, lazily: bool) -> Dataset:
    """Read the folders below ``root``, or the ``.npz`` file that it holds or is, or the four ``.npy`` files.

    If it is done ``lazily``, images are read when batches need them.
    """
    if not root.is_dir():
        if not root.exists():
            raise ValueError("is not there")
        if root.suffix != ".npz":
            raise ValueError("must be a folder or an .npz file")
        return _read_arrays(root, lazily)
    folders = [name for name in ("train", "test") if (root / name).is_dir()]
    files = sorted(path.name for path in root.glob("*.npz"))
    arrays = sorted(name for name in ARRAYS if (root / f"{name}.npy").is_file())
    if folders == ["train", "test"] and not files and not arrays:
        return _read_folders(root, lazily)
    if len(files) == 1 and not folders and not arrays:
        return _read_arrays(root / files[0], lazily)
    if arrays and not files and not folders:
        return _read_arrays(root, lazily)
    content = ", ".join([*(f"{name}/" for name in folders), *files, *(f"{name}.npy" for name in arrays)]) or "neither"
    raise ValueError(
        "must hold train/ and test/ with a folder for each class, or one .npz file, or the .npy files "
        f"{', '.join(ARRAYS)}; holds {content}"
    )


def _read_folders(root: Path, lazily: bool) -> Dataset:
    """Classes are the folders of ``train/``, numbered in the order of their names."""
    from torchvision.datasets.folder import find_classes

    classes, _ = find_classes(str(root / "train"))
    first: str | None = None
    splits = []
    for split in ("train", "test"):
        names, _ = find_classes(str(root / split))
        unknown = set(names) - set(classes)
        if unknown:
            raise ValueError(f"{split}/{min(unknown)} is a class that train/ does not have")
        labels = Spool(np.int64)
        images = ImageItems.of(root, _files(root, split, {name: classes.index(name) for name in names}, labels), first)
        first = images.first
        known = torch.from_numpy(labels.mapped())
        splits.append(Split(images, known) if lazily else Split(images[:], known.clone()))
    return Dataset(splits[0], splits[1], len(classes), class_names=classes)


def _files(root: Path, split: str, classes: Mapping[str, int], labels: Spool) -> Iterator[list[bytes]]:
    """The image files of ``split``, below ``root``, in torchvision's order, some at a time, with labels in ``labels``.

    Names are bytes: strings of all files would take 200 bytes each.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    suffixes = tuple(map(os.fsencode, IMG_EXTENSIONS))
    for title, label in classes.items():
        found = 0
        for folder, _, names in sorted(os.walk(os.fsencode(root / split / title), followlinks=True)):
            below = os.path.relpath(folder, os.fsencode(root))
            names = sorted(name for name in names if name.lower().endswith(suffixes))
            found += len(names)
            for start in range(0, len(names), _GROUP):
                files = [os.path.join(below, name) for name in names[start : start + _GROUP]]
                labels.append(np.full(len(files), label))
                yield files
        if not found:
            raise ValueError(f"{split}/{title} holds no image ({', '.join(IMG_EXTENSIONS)})")


def _read_arrays(path: Path, lazily: bool) -> Dataset:
    """Read ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, from one ``.npz`` file or from four
    ``.npy`` files in a folder.

    Images are uint8 ``[M, H, W]`` or ``[M, H, W, C]``, labels are whole numbers ``[M]``.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        if path.is_dir():
            for name in ARRAYS:
                if (path / f"{name}.npy").is_file():
                    arrays[name] = np.load(path / f"{name}.npy", "r" if lazily else None, allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as file:
                for name in (name for name in ARRAYS if name in file):
                    arrays[name] = mapped_member(path, name) if lazily else file[name]
    # zipfile, zlib and numpy report damage by exceptions of many types.
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    for name in ARRAYS:
        if name not in arrays:
            raise ValueError(f"{path.name} has no {name}: must have {', '.join(ARRAYS)}")
    train, test = (
        _array_split(split, arrays[f"{split}_images"], arrays[f"{split}_labels"], lazily) for split in ("train", "test")
    )
    labels = train.labels[:]
    unknown = set(test.labels[:].tolist()) - set(labels.tolist())
    if unknown:
        raise ValueError(f"test_labels has class {min(unknown)}: must be one of train_labels")
    return Dataset(train, test, classes=int(labels.max()) + 1)


def _array_split(name: str, images: NDArray[np.uint8], labels: NDArray[np.integer], lazily: bool) -> Split:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name}_images={images.dtype} {list(images.shape)}: must be uint8 [M, H, W] or [M, H, W, C], C 1 or 3"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name}_labels={labels.dtype} {list(labels.shape)}: must be whole numbers {list(images.shape[:1])}"
        )
    if lazily:
        return Split(MappedImages(images, f"{name}_images"), torch.from_numpy(in_file(labels.astype(np.int64))))
    return _split(images, labels.astype(np.int64))


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64] | list[int]) -> Split:
    """Split of images uint8 ``[M, H, W, C]``."""
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels))
