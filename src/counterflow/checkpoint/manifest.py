"""Manifest of a checkpoint: written last, it lists the files that make the checkpoint complete."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterflow.checkpoint.atomic_write import atomic_write, sha256

NAME = "manifest.json"
FORMAT = 1
_MAX_BYTES = 16 << 20
"""Longer manifests are corrupt and not read."""


class CorruptCheckpointError(Exception):
    """An incomplete or altered checkpoint; the text gives the reason."""


@dataclass(frozen=True)
class BlockWritten:
    """Report to rank 0 that a block was written, or could not be written."""

    batches: int
    """Training batches before the checkpoint."""
    block: int
    nbytes: int
    sha256: str
    error: str = ""
    """Why the file is missing; empty if it was written."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BlockWritten":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class ManifestHeader:
    """The part of a manifest that is the same for all checkpoints of a run."""

    identity: Mapping[str, Any]
    """Everything that determines the run's result, by configuration key."""
    cut: Sequence[int]
    """Number of layers of every block, bottom to top."""
    versions: Mapping[str, str | None]
    """Versions of the software, and the hardware: others may round differently."""


@dataclass(frozen=True)
class Manifest(ManifestHeader):
    batches: int
    """Training batches before the checkpoint."""
    blocks: Sequence[Mapping[str, Any]]
    """``nbytes`` and ``sha256`` of every block's file, bottom to top."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Raises ``OSError``."""
        atomic_write(folder / NAME, json.dumps(asdict(self), indent=1).encode())


def block_file(folder: Path, block: int) -> Path:
    """Path of a block's file in a checkpoint folder."""
    return folder / f"block-{block:04}.pt"


def load(folder: Path) -> Manifest:
    """Read the manifest in ``folder`` and verify the files it lists.

    Raises:
        CorruptCheckpointError: the manifest or a file is missing, or not as written.
        ValueError: another version of counterflow wrote the manifest.
    """
    manifest = _parse(folder / NAME)
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
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"it has no {NAME}, so it was never completed") from None
    except OSError as error:
        raise CorruptCheckpointError(f"{NAME}: {error.strerror}") from error
    try:
        content = json.loads(text) if len(text) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{NAME} is damaged")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: is of format {content.get('format')}, this version of counterflow reads {FORMAT}")
    try:
        manifest = Manifest(**content)
        files = [(entry["nbytes"], entry["sha256"]) for entry in manifest.blocks]
        valid = (
            all(type(nbytes) is int and isinstance(digest, str) for nbytes, digest in files)
            and type(manifest.batches) is int
            and manifest.batches > 0
            and all(type(layers) is int for layers in manifest.cut)
            and len(manifest.cut) == len(files) > 0
            and isinstance(manifest.identity, dict)
            and isinstance(manifest.versions, dict)
        )
    except (TypeError, KeyError) as error:
        raise CorruptCheckpointError(f"{NAME} is damaged") from error
    if not valid:
        raise CorruptCheckpointError(f"{NAME} is damaged")
    return manifest
