"""The folder that holds the checkpoints of a run, one folder each."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from counterflow.checkpoint.manifest import NAME, CorruptCheckpointError, Manifest, read, verify

_PREFIX = "batch-"


@dataclass(frozen=True)
class CheckpointDirectory:
    path: Path

    def folder(self, batches: int) -> Path:
        """Of the checkpoint after ``batches`` training batches."""
        return self.path / f"{_PREFIX}{batches:08}"

    def folders(self) -> list[Path]:
        """Of all checkpoints, newest first, whole or not."""
        found = [path for path in self.path.glob(f"{_PREFIX}*") if _batches(path) is not None and path.is_dir()]
        return sorted(found, key=lambda path: _batches(path) or 0, reverse=True)

    def latest(self, before: int, log: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """The newest whole checkpoint after fewer than ``before`` batches; ``log`` hears of every damaged one.

        ``ValueError`` for one of another version of this program.
        """
        for folder in self.folders():
            if (_batches(folder) or 0) >= before:
                continue
            try:
                manifest = load(folder)
                if manifest.batches != _batches(folder):
                    raise CorruptCheckpointError(f"{NAME} is of the checkpoint after {manifest.batches} batches")
            except CorruptCheckpointError as error:
                log(f"{folder}: is no whole checkpoint ({error}), an older one is looked for")
            else:
                return folder, manifest
        return None

    def forget_after(self, batches: int) -> None:
        """Remove later checkpoints, damaged ones among them: they are written anew."""
        for folder in self.folders():
            if (_batches(folder) or 0) > batches:
                _remove(folder)

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` checkpoints that count; what does not count is removed with those before
        it, and stays after them, where it may be half written."""
        counted = 0
        for folder in self.folders():
            if counted >= keep:
                _remove(folder)
            counted += (folder / NAME).exists()


def _remove(folder: Path) -> None:
    (folder / NAME).unlink(missing_ok=True)  # first: what is half removed must not count
    shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path) -> Manifest:
    """The manifest of the whole checkpoint in ``folder``. `DamagedError` or ``ValueError`` if it cannot be used."""
    manifest = read(folder)
    verify(folder, manifest)
    return manifest


def _batches(folder: Path) -> int | None:
    digits = folder.name.removeprefix(_PREFIX)
    return int(digits) if folder.name.startswith(_PREFIX) and digits.isdecimal() and digits.isascii() else None
