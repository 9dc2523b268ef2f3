"""Inputs of a trained network from files: images, folders of them, and arrays of numpy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.inference.predictor import Predictor

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the files that are taken from a folder."""
ARRAYS = (".npy", ".npz")
_KEYS = ("inputs", "images", "test_images")
"""Names of the array that is read from a ``.npz`` file with several."""


@dataclass(frozen=True)
class Sample:
    name: str
    """Its file, with its index if the file has many: ``digits.npy[3]``."""
    inputs: Tensor
    """As the data set of the run has them, without the batch dimension."""


def read_samples(
    paths: Sequence[Path], predictor: Predictor, refuse: Callable[[str], object], resize: bool = False
) -> Iterator[Sample]:
    """Samples of all ``paths`` in their order, one at a time.

    Args:
        paths: Image files, folders with image files at any depth, and ``.npy`` or ``.npz`` files, ``[M, ...]``.
        predictor: The network that they are for.
        refuse: Called with one line for each file, or row of an array, that the network cannot take.
        resize: Scale images to the size that the network was trained on.
    """
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
            if not files:
                refuse(f"{path}: holds no image ({', '.join(IMAGES)})")
        else:
            files = [path]
        for file in files:
            try:
                if file.suffix.lower() in ARRAYS:
                    yield from _rows(file, predictor, refuse)
                else:
                    yield Sample(str(file), read_image(file, predictor, resize))
            except ValueError as error:
                refuse(str(error))


def read_image(path: Path, predictor: Predictor, resize: bool) -> Tensor:
    """Image file as uint8 ``[C, H, W]``, grey or in colour as the network needs. ``ValueError`` naming the fault."""
    from PIL import Image, ImageOps

    if predictor.dtype != torch.uint8:
        raise ValueError(f"{path}: the network was not trained on images; give a .npy or .npz file")
    channels, height, width = predictor.input_shape
    try:
        with Image.open(path) as file:
            image: Any = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    # Every format of PIL reports damage by an exception of its own.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if image.size != (width, height):
        if not resize:
            raise ValueError(f"{path}: has {image.width}x{image.height} pixels: must be {width}x{height}, or --resize")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)


def _rows(path: Path, predictor: Predictor, refuse: Callable[[str], object]) -> Iterator[Sample]:
    rows = _array(path)
    wanted, tokens = list(predictor.input_shape), len(predictor.class_names)
    images = predictor.dtype == torch.uint8
    if images and rows.ndim == 3:
        rows = rows[..., None]
    shape = list(rows.shape[1:])
    if images:
        shape = [*shape[2:], *shape[:2]]  # arrays have their channels last
    kinds = {torch.uint8: "u", torch.int64: "iu", torch.float32: "f"}[predictor.dtype]
    if rows.dtype.kind not in kinds or (images and rows.dtype.itemsize > 1) or shape != wanted:
        kind = str(predictor.dtype).removeprefix("torch.")
        layout = [*wanted[1:], wanted[0]] if images else wanted
        raise ValueError(
            f"{path}: has {rows.dtype} {list(rows.shape)}: must be {kind} [{', '.join(map(str, ['M', *layout]))}]"
        )
    for index, row in enumerate(rows):
        tensor = torch.from_numpy(np.array(row)).to(predictor.dtype)
        name = f"{path}[{index}]"
        if predictor.dtype == torch.int64 and not ((tensor >= 0) & (tensor < tokens)).all():
            refuse(f"{name}: has tokens outside 0..{tokens - 1}")
            continue
        yield Sample(name, tensor.permute(2, 0, 1) if images else tensor)


def _array(path: Path) -> NDArray[Any]:
    """The array of a file; that of a ``.npy`` file stays on the disk until its rows are read."""
    try:
        if path.suffix.lower() == ".npy":
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return array if array.ndim else array[None]
        with np.load(path, allow_pickle=False) as file:
            names = [key for key in _KEYS if key in file] or list(file)
            if len(names) == 1 or names[0] in _KEYS:
                content: NDArray[Any] = file[names[0]]
                return content
    # zipfile, zlib and numpy report damage by exceptions of many types.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    raise ValueError(f"{path}: holds {', '.join(names)}: must hold one array, or one named {', '.join(_KEYS)}")
