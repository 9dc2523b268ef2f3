"""Directory of a run's checkpoints, one folder each, and their commit on rank 0.

A checkpoint is complete with its manifest, which is written once all blocks are.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from counterflow.checkpoint.manifest import NAME, BlockWritten, CorruptCheckpointError, Manifest, ManifestHeader, load

_log = logging.getLogger(__name__)

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


class CheckpointCommitter:
    """Completes a checkpoint once every block of it is on the disk, and removes old ones.

    If the disk is full, the checkpoint is skipped with a warning; training continues.
    """

    def __init__(
        self,
        directory: CheckpointDirectory,
        header: ManifestHeader,
        keep: int,
        batches: int,
        start: int = 0,
        on_commit: Callable[[int], None] = lambda batches: None,
    ) -> None:
        """Args:
        directory: where the checkpoints are.
        header: the run's part of every manifest.
        keep: number of complete checkpoints to keep.
        batches: training batches of the whole run.
        start: training batches before this start of the run.
        on_commit: called with the number of batches of every completed checkpoint, except the run's last.
        """
        self._directory = directory
        self._header = header
        self._keep = keep
        self._last = batches
        self._latest = start
        self._on_commit = on_commit
        self._pending: dict[int, dict[int, BlockWritten]] = defaultdict(dict)

    def add(self, written: BlockWritten) -> None:
        """Take the report of one block, in any order."""
        if written.batches <= self._latest:  # a restarted rank reports its blocks again
            return
        blocks = self._pending[written.batches]
        blocks[written.block] = written
        if len(blocks) < len(self._header.cut):
            return
        del self._pending[written.batches]
        failures = sorted({f"block {b.block}: {b.error}" for b in blocks.values() if b.error})
        try:
            if failures:
                raise OSError(f"{failures[0]}{' and others' if failures[1:] else ''}")
            self._commit(written.batches, blocks)
        except OSError as error:
            _log.warning(
                f"no checkpoint after batch {written.batches - 1}: {error.strerror or error}; training goes on, and so "
                "does the last whole checkpoint"
            )

    def finish(self) -> None:
        """Prune once more at the end of the run."""
        self._directory.prune(self._keep)

    def _commit(self, batches: int, blocks: Mapping[int, BlockWritten]) -> None:
        files = [{"nbytes": blocks[b].nbytes, "sha256": blocks[b].sha256} for b in sorted(blocks)]
        Manifest(**vars(self._header), batches=batches, blocks=files).write(self._directory.folder(batches))
        self._latest = batches
        # The last checkpoint is of a finished run, which nothing resumes: until then an older one may be needed.
        if batches < self._last:
            self._on_commit(batches)
            self._directory.prune(self._keep)
