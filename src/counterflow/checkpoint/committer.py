"""Rank-0 commit of checkpoints: a manifest once all blocks are written."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping

from counterflow.checkpoint.directory import CheckpointDirectory
from counterflow.checkpoint.manifest import BlockWritten, Manifest, ManifestHeader

_log = logging.getLogger(__name__)


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
