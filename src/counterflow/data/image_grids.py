"""CIFAR-10 as image grids: lossless images, each a grid of tiles of one class, listed in ``manifest.json``."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from counterflow.data import image_file
from counterflow.data.dataset import Split

MANIFEST = "manifest.json"
SIDE = 32
"""Pixels along each side of a tile."""


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


def read(folder: Path, split: str) -> Split:
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
    pixels = image_file.read(folder, grid.file)
    height, width = grid.rows * SIDE, grid.columns * SIDE
    if pixels.shape != (height, width, 3):
        raise ValueError(f"{grid.file} has shape {list(pixels.shape)}: {MANIFEST} says that it is {[height, width, 3]}")
    tiles = pixels.view(grid.rows, SIDE, grid.columns, SIDE, 3).transpose(1, 2).reshape(-1, SIDE, SIDE, 3)
    if hashlib.sha256(tiles.numpy().tobytes()).hexdigest() != grid.sha256:
        raise ValueError(f"{grid.file} is damaged: the sha256 of its pixels is not the one in {MANIFEST}")
    return tiles
