"""Labelled images in one file of numpy's."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from counterflow.data.dataset import Dataset, Split

SPLITS = ("train", "test")


def read(path: Path) -> Dataset:
    """From ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``.

    Images are uint8 ``[M, H, W]`` or ``[M, H, W, C]``, labels whole numbers ``[M]``. ``ValueError`` names the file
    or the array, and what is wrong with it.
    """
    names = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    # A damaged file makes zipfile, zlib and numpy raise what they like.
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
    for name in names:
        if name not in arrays:
            raise ValueError(f"{path.name} has no {name}: must have {', '.join(names)}")
    train, test = (_split(split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in SPLITS)
    unknown = set(test.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise ValueError(f"test_labels has class {min(unknown)}: must be one of train_labels")
    return Dataset(train, test, classes=int(train.labels.max()) + 1)


def _split(name: str, images: NDArray[np.uint8], labels: NDArray[np.integer]) -> Split:
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
