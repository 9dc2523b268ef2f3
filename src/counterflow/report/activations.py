"""What the blocks of a run put out on test samples."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Activations:
    blocks: tuple[NDArray[np.float64], ...]
    """Output of every block, bottom to top, ``[M, d_k]``; finite."""
    labels: NDArray[np.int64]
    """``[M]``, of at least two classes."""


def read(path: Path) -> Activations | None:
    """None where there is no such file; ``ValueError`` of one line that names it where it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path) as content:
            labels = np.asarray(content["labels"], dtype=np.int64)
            count = len([name for name in content.files if name.startswith("block_")])
            blocks = tuple(np.asarray(content[f"block_{k}"], dtype=np.float64) for k in range(1, count + 1))
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path}: must hold labels and block_1 .. block_N") from error
    if not blocks or labels.ndim != 1 or any(block.ndim != 2 or len(block) != len(labels) for block in blocks):
        raise ValueError(f"{path}: must hold labels [M] and block_1 .. block_N, each [M, d]")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{path}: labels must be of at least two classes")
    if not all(np.isfinite(block).all() for block in blocks):
        raise ValueError(f"{path}: activations must be finite")
    return Activations(blocks, labels)
