"""The first process's account of what all processes have written."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterflow.checkpoint.block_written import BlockWritten
from counterflow.checkpoint.directory import CheckpointDirectory
from counterflow.checkpoint.manifest import Manifest


class CheckpointCommitter:
    """Completes a checkpoint once every block of it is on the disk, and removes those that are not kept."""

    def __init__(
        self,
        shelf: CheckpointDirectory,
        keep: int,
        last: int,
        identity: Mapping[str, Any],
        cut: Sequence[int],
        versions: Mapping[str, str],
        log: Callable[[str], None],
        start: int = 0,
        completed: Callable[[int], None] = lambda batches: None,
    ) -> None:
        """``last`` is how many batches the run has, and ``start`` how many it had; ``log`` hears of checkpoints that
        could not be written, ``completed`` of those that count."""
        self._shelf = shelf
        self._keep = keep
        self._last = last
        self._identity = identity
        self._cut = cut
        self._versions = versions
        self._tell = log
        self._newest = start
        self._completed = completed
        self._saved: dict[int, dict[int, BlockWritten]] = defaultdict(dict)

    def add(self, saved: BlockWritten) -> None:
        if saved.batches <= self._newest:  # a rank that was replaced says it again
            return
        blocks = self._saved[saved.batches]
        blocks[saved.block] = saved
        if len(blocks) < len(self._cut):
            return
        del self._saved[saved.batches]
        failures = sorted({f"block {b.block}: {b.error}" for b in blocks.values() if b.error})
        try:
            if failures:
                raise OSError(f"{failures[0]}{' and others' if failures[1:] else ''}")
            self._complete(saved.batches, blocks)
        except OSError as error:
            self._tell(
                f"no checkpoint after batch {saved.batches - 1}: {error.strerror or error}; training goes on, and so "
                "does the last whole checkpoint"
            )

    def _complete(self, batches: int, blocks: Mapping[int, BlockWritten]) -> None:
        files = [{"nbytes": blocks[b].nbytes, "sha256": blocks[b].sha256} for b in sorted(blocks)]
        Manifest(batches, self._identity, self._cut, files, self._versions).write(self._shelf.folder(batches))
        self._newest = batches
        # Nothing goes on from the last one, and until the run has finished something may have to.
        if batches < self._last:
            self._completed(batches)
            self._shelf.prune(self._keep)

    def finish(self) -> None:
        """The run has finished."""
        self._shelf.prune(self._keep)
