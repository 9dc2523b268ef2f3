"""CIFAR-10 as sheets: lossless images that each hold pictures of one class in a grid, listed in ``manifest.json``."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from counterflow.data import image_file
from counterflow.data.dataset import Split

MANIFEST = "manifest.json"
SIDE = 32
"""Pixels along each side of a picture."""


@dataclass(frozen=True)
class ImageGrid:
    """``columns * rows`` pictures, row by row; ``sha256`` is that of their pixels, uint8 ``[M, 32, 32, 3]``."""

    file: str
    split: str
    class_index: int
    columns: int
    rows: int
    sha256: str


def read(folder: Path, split: str) -> Split:
    """The pictures of ``split``, uint8 ``[M, 3, 32, 32]``, in the order of the manifest.

    ``ValueError`` names the file that is missing or damaged and what is wrong with it.
    """
    sheets = [sheet for sheet in _manifest(folder) if sheet.split == split]
    if not sheets:
        raise ValueError(f"{MANIFEST} lists no file of split {split}")
    pictures = [_pictures(folder, sheet) for sheet in sheets]
    labels = [torch.full((len(part),), sheet.class_index) for part, sheet in zip(pictures, sheets, strict=True)]
    return Split(torch.cat(pictures).permute(0, 3, 1, 2).contiguous(), torch.cat(labels))


def _manifest(folder: Path) -> list[ImageGrid]:
    try:
        return [
            ImageGrid(
                file=str(entry["file"]),
                split=str(entry["split"]),
                class_index=int(entry["class_index"]),
                columns=int(entry["columns"]),
                rows=int(entry["rows"]),
                sha256=str(entry["sha256"]),
            )
            for entry in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {type(error).__name__}: {error}") from error


def _pictures(folder: Path, sheet: ImageGrid) -> Tensor:
    """Those of one sheet, uint8 ``[M, 32, 32, 3]``."""
    pixels = image_file.read(folder, sheet.file)
    height, width = sheet.rows * SIDE, sheet.columns * SIDE
    if pixels.shape != (height, width, 3):
        raise ValueError(
            f"{sheet.file} has shape {list(pixels.shape)}: {MANIFEST} says that it is {[height, width, 3]}"
        )
    grid = pixels.view(sheet.rows, SIDE, sheet.columns, SIDE, 3)
    pictures = grid.transpose(1, 2).reshape(-1, SIDE, SIDE, 3)
    if hashlib.sha256(pictures.numpy().tobytes()).hexdigest() != sheet.sha256:
        raise ValueError(f"{sheet.file} is damaged: the sha256 of its pixels is not the one in {MANIFEST}")
    return pictures
