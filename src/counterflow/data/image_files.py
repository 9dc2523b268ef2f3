"""Image files and PIL images as tensors; data sets of them, in folders by class or in one ``.npz`` file of numpy."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split


def load(config: DataConfig) -> Dataset:
    """Read images uint8 ``[M, C, H, W]`` from ``data.root``, all of one size and either grey or in colour.

    Raises ``ValueError`` if the folder holds neither form or both, or if a file is damaged or differs from the others.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        folders = [name for name in ("train", "test") if (root / name).is_dir()]
        files = sorted(path.name for path in root.glob("*.npz"))
        if folders == ["train", "test"] and not files:
            return _read_folders(root)
        if len(files) == 1 and not folders:
            return _read_npz(root / files[0])
        content = ", ".join([*(f"{name}/" for name in folders), *files]) or "neither"
        raise ValueError(f"must hold train/ and test/ with a folder for each class, or one .npz file; holds {content}")
    except (OSError, ValueError) as error:
        raise ValueError(f"data.root={config.root}: {error}") from error


def _read_folders(root: Path) -> Dataset:
    """Classes are the folders of ``train/``, numbered in the order of their names."""
    from torchvision.datasets import ImageFolder

    train, test = ImageFolder(root / "train"), ImageFolder(root / "test")
    unknown = test.class_to_idx.keys() - train.class_to_idx.keys()
    if unknown:
        raise ValueError(f"test/{min(unknown)} is a class that train/ does not have")
    classes = [train.class_to_idx[name] for name in test.classes]
    first = os.path.relpath(train.samples[0][0], root)
    return Dataset(
        _read_images(root, train.samples, first),
        _read_images(root, [(path, classes[label]) for path, label in test.samples], first),
        classes=len(train.classes),
    )


def _read_images(root: Path, samples: list[tuple[str, int]], first: str) -> Split:
    """Read the images of ``samples``, each of the size and the channels of the image ``first``."""
    height, width, channels = read(root, first).shape
    images = torch.empty(len(samples), channels, height, width, dtype=torch.uint8)
    for image, (path, _) in zip(images, samples, strict=True):
        name = os.path.relpath(path, root)
        found = read(root, name)
        if found.shape != (height, width, channels):
            raise ValueError(
                f"{name} has height, width and channels {list(found.shape)}: "
                f"must be {[height, width, channels]}, those of {first}"
            )
        image.copy_(found.permute(2, 0, 1))
    return Split(images, torch.tensor([label for _, label in samples]))


def _read_npz(path: Path) -> Dataset:
    """Read ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``.

    Images are uint8 ``[M, H, W]`` or ``[M, H, W, C]``, labels are whole numbers ``[M]``.
    """
    names = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    # zipfile, zlib and numpy report damage by exceptions of many types.
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    for name in names:
        if name not in arrays:
            raise ValueError(f"{path.name} has no {name}: must have {', '.join(names)}")
    train, test = (
        _array_split(split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")
    )
    unknown = set(test.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise ValueError(f"test_labels has class {min(unknown)}: must be one of train_labels")
    return Dataset(train, test, classes=int(train.labels.max()) + 1)


def _array_split(name: str, images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Split:
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
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(labels.astype(np.int64)))


def read(root: Path, name: str) -> Tensor:
    """Read the pixels of the grey or RGB image ``name`` below ``root``, uint8 ``[H, W, C]``, without conversion.

    Raises ``ValueError`` naming the file and the fault.
    """
    from PIL import Image

    try:
        with Image.open(root / name) as image:
            image.load()
    # Every format of PIL reports damage by an exception of its own.
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
    return pixels(image, name)


def pixels(image: Any, name: str) -> Tensor:
    """Pixels of a grey or RGB PIL image, uint8 ``[H, W, C]``; errors call it ``name``."""
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"{name} has pixels of mode {image.mode}: must be L (grey) or RGB")
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1)
