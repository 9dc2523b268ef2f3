"""Images of your own: ``train/`` and ``test/`` with a folder for each class, or one ``.npz`` file."""

import os
from pathlib import Path

import torch

from counterflow.config import DataConfig
from counterflow.data import image_file, npz
from counterflow.data.dataset import Dataset, Split


def load(config: DataConfig) -> Dataset:
    """Images uint8 ``[M, C, H, W]``, all of one size and either grey or in colour, from what ``data.root`` holds.

    ``ValueError`` where it holds neither or both, or where a file is damaged or unlike the others.
    """
    root = Path(os.path.expanduser(config.root))
    try:
        folders = [name for name in ("train", "test") if (root / name).is_dir()]
        files = sorted(path.name for path in root.glob("*.npz"))
        if folders == ["train", "test"] and not files:
            return _tree(root)
        if len(files) == 1 and not folders:
            return npz.read(root / files[0])
        found = ", ".join([*(f"{name}/" for name in folders), *files]) or "neither"
        raise ValueError(f"must hold train/ and test/ with a folder for each class, or one .npz file; holds {found}")
    except (OSError, ValueError) as error:
        raise ValueError(f"data.root={config.root}: {error}") from error


def _tree(root: Path) -> Dataset:
    """Classes are the folders of ``train/``, numbered in the order of their names."""
    from torchvision.datasets import ImageFolder

    train, test = ImageFolder(root / "train"), ImageFolder(root / "test")
    unknown = test.class_to_idx.keys() - train.class_to_idx.keys()
    if unknown:
        raise ValueError(f"test/{min(unknown)} is a class that train/ does not have")
    classes = [train.class_to_idx[name] for name in test.classes]
    first = os.path.relpath(train.samples[0][0], root)
    return Dataset(
        _split(root, train.samples, first),
        _split(root, [(path, classes[label]) for path, label in test.samples], first),
        classes=len(train.classes),
    )


def _split(root: Path, samples: list[tuple[str, int]], first: str) -> Split:
    """The images of ``samples``, each of the size and the channels of the image ``first``."""
    height, width, channels = image_file.read(root, first).shape
    images = torch.empty(len(samples), channels, height, width, dtype=torch.uint8)
    for image, (path, _) in zip(images, samples, strict=True):
        name = os.path.relpath(path, root)
        pixels = image_file.read(root, name)
        if pixels.shape != (height, width, channels):
            raise ValueError(
                f"{name} has height, width and channels {list(pixels.shape)}: "
                f"must be {[height, width, channels]}, those of {first}"
            )
        image.copy_(pixels.permute(2, 0, 1))
    return Split(images, torch.tensor([label for _, label in samples]))
