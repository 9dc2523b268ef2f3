"""Atomic file writes: after a crash the file is complete or absent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write to a temporary name, flush it to the disk, then rename it to ``path``. Raises ``OSError``."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a crash only once its folder is on the disk
    finally:
        os.close(folder)
