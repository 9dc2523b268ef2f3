"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in colour."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from counterflow.config import DataConfig
from counterflow.data import image_grids
from counterflow.data.dataset import Dataset, Split
from counterflow.data.download import download

CLASSES = {"cifar10": 10, "cifar100": 100}


def load(config: DataConfig) -> Dataset:
    """Read images uint8 ``[M, 3, 32, 32]`` from torchvision's folder of the Python version below ``data.root``.

    CIFAR-10 is also read from image grids in ``data.root``. Raises ``ValueError`` if a file is missing, damaged or
    cannot be downloaded.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        if config.name == "cifar10" and (root / image_grids.MANIFEST).is_file():
            train, test = image_grids.read(root, "train"), image_grids.read(root, "test")
        else:
            train, test = _read_pickles(root, config.name, config.download)
        return Dataset(train, test, CLASSES[config.name])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.root={config.root}: {error}; point data.root to a folder with the files of "
            f"data={config.name}, or to a new one with data.download=true"
        ) from error


def _read_pickles(root: Path, name: str, fetch: bool) -> tuple[Split, Split]:
    """Read torchvision's files, downloaded if they are missing or damaged and ``fetch`` allows it."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    cifar = getattr(datasets, name.upper())
    folder = root / cifar.base_folder
    files = dict([*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])])
    wrong = [file for file, md5 in files.items() if not check_integrity(folder / file, md5)]
    if wrong and fetch:
        download(lambda scratch: cifar(scratch, download=True), root, cifar.base_folder, files)
    elif wrong:
        fault = "is damaged: its md5 is not that of the original" if (folder / wrong[0]).exists() else "is missing"
        raise ValueError(f"{cifar.base_folder}/{wrong[0]} {fault}")
    train, test = (cifar(root, train=train) for train in (True, False))
    return _split(train.data, train.targets), _split(test.data, test.targets)


def _split(images: NDArray[np.uint8], labels: list[int]) -> Split:
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
