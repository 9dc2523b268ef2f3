"""The file that makes a checkpoint count: written last, it says what all others have to be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterflow.checkpoint.atomic_write import atomic_write, sha256

NAME = "manifest.json"
FORMAT = 1
_MOST_BYTES = 16 << 20
"""No manifest is longer; what is longer is not read at all."""


class CorruptCheckpointError(Exception):
    """A checkpoint that is incomplete, or not what was written; the text says why."""


@dataclass(frozen=True)
class Manifest:
    batches: int
    """Training batches before the cut."""
    identity: Mapping[str, Any]
    """What the result of the run is a function of, by the key that sets it."""
    cut: Sequence[int]
    """Layers of every block."""
    blocks: Sequence[Mapping[str, Any]]
    """``nbytes`` and ``sha256`` of every block's file, bottom to top."""
    versions: Mapping[str, str]
    """Of what computed it: other versions may round differently."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        atomic_write(folder / NAME, json.dumps(asdict(self), indent=1).encode())


def block_file(folder: Path, block: int) -> Path:
    return folder / f"block-{block:04}.pt"


def read(folder: Path) -> Manifest:
    """The manifest in ``folder``. `DamagedError` if there is none that can be read, ``ValueError`` if it is of a
    version of this program that writes them differently."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"it has no {NAME}, so it was never completed") from None
    except OSError as error:
        raise CorruptCheckpointError(f"{NAME}: {error.strerror}") from error
    try:
        content = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{NAME} is damaged")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: is of format {content.get('format')}, this version of counterflow reads {FORMAT}")
    try:
        return _checked(Manifest(**content))
    except (TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"{NAME} is damaged") from error


def _checked(manifest: Manifest) -> Manifest:
    """``TypeError`` or ``KeyError`` where a part is not what it should be."""
    files = [(entry["nbytes"], entry["sha256"]) for entry in manifest.blocks]
    right = (
        all(type(nbytes) is int and isinstance(digest, str) for nbytes, digest in files)
        and type(manifest.batches) is int
        and manifest.batches > 0
        and all(type(layers) is int for layers in manifest.cut)
        and len(manifest.cut) == len(files) > 0
        and isinstance(manifest.identity, dict)
        and isinstance(manifest.versions, dict)
    )
    if not right:
        raise TypeError
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """`CorruptCheckpointError` unless every block's file is there, and is what was written."""
    for block, entry in enumerate(manifest.blocks, 1):
        path = block_file(folder, block)
        try:
            nbytes = path.stat().st_size
            if nbytes != entry["nbytes"]:
                raise CorruptCheckpointError(f"{path.name} has {nbytes} bytes, {entry['nbytes']} were written")
            if sha256(path) != entry["sha256"]:
                raise CorruptCheckpointError(f"{path.name} is not what was written")
        except OSError as error:
            raise CorruptCheckpointError(f"{path.name}: {error.strerror}") from error
