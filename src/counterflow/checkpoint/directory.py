"""Directory of a run's checkpoints, one folder each."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from counterflow.checkpoint.manifest import NAME, CorruptCheckpointError, Manifest, load

_PREFIX = "batch-"


@dataclass(frozen=True)
class CheckpointDirectory:
    path: Path

    def folder(self, batches: int) -> Path:
        """Folder of the checkpoint after ``batches`` training batches."""
        return self.path / f"{_PREFIX}{batches:08}"

    def folders(self) -> list[Path]:
        """Folders of all checkpoints, newest first, complete or not."""
        found = [path for path in self.path.glob(f"{_PREFIX}*") if _batches(path) is not None and path.is_dir()]
        return sorted(found, key=lambda path: _batches(path) or 0, reverse=True)

    def latest(self, before: int, log: Callable[[str], None]) -> tuple[Path, Manifest] | None:
        """Newest complete checkpoint after fewer than ``before`` batches; ``log`` gets a line per corrupt one.

        Raises:
            ValueError: another version of counterflow wrote the checkpoint.
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
        """Remove all checkpoints after more than ``batches`` batches, corrupt ones too: the run writes them again."""
        for folder in self.folders():
            if (_batches(folder) or 0) > batches:
                _remove(folder)

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` complete checkpoints.

        An incomplete one stays if it is newer than those kept: its blocks may still be being written.
        """
        complete = 0
        for folder in self.folders():
            if complete >= keep:
                _remove(folder)
            complete += (folder / NAME).exists()


def _remove(folder: Path) -> None:
    (folder / NAME).unlink(missing_ok=True)  # first: a half removed checkpoint must not look complete
    shutil.rmtree(folder, ignore_errors=True)


def _batches(folder: Path) -> int | None:
    digits = folder.name.removeprefix(_PREFIX)
    return int(digits) if folder.name.startswith(_PREFIX) and digits.isdecimal() and digits.isascii() else None
