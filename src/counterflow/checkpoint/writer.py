"""Where the states of a process's blocks come from and go to."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from counterflow.checkpoint.atomic_write import atomic_write, sha256
from counterflow.checkpoint.block_state import BlockState
from counterflow.checkpoint.block_written import BlockWritten
from counterflow.checkpoint.directory import CheckpointDirectory
from counterflow.checkpoint.manifest import block_file


class CheckpointWriter:
    """Writes on a thread, while the blocks train on: a state is copied once, and a second copy of the same block waits
    until the one before it is on the disk."""

    def __init__(
        self,
        shelf: CheckpointDirectory,
        origin: Path | None,
        device: torch.device,
        report: Callable[[BlockWritten], None],
        timeout: float,
    ) -> None:
        """``origin`` is the folder of the checkpoint that the run goes on from; ``report`` hears of every file;
        ``timeout`` bounds, in seconds, every wait for the disk."""
        self._shelf = shelf
        self._origin = origin
        self._device = device
        self._report = report
        self._timeout = timeout
        self._queue: queue.SimpleQueue[tuple[int, int, BlockState] | None] = queue.SimpleQueue()
        self._writing: dict[int, threading.Event] = {}
        self._thread: threading.Thread | None = None

    def restore(self, block: int) -> BlockState | None:
        """The state that ``block`` goes on from; None at the beginning of a run.

        Nothing that a file says is executed. Raises ``ValueError`` for one that cannot be read.
        """
        if self._origin is None:
            return None
        path = block_file(self._origin, block)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            return BlockState(**content).to(self._device)
        except FileNotFoundError:
            raise ValueError(f"{path}: is not there; run.dir has to be a folder that all nodes share") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path}: cannot be read ({reason})") from error

    def save(self, block: int, batches: int, state: BlockState) -> None:
        """Copy ``state`` of ``block`` after ``batches`` batches, and have it written. ``TimeoutError`` if the file
        before it is still not there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
            self._thread.start()
        self._wait(block)
        self._writing[block] = threading.Event()
        self._queue.put((block, batches, state.copy()))

    def finish(self) -> None:
        """Wait until every file is written and reported."""
        for block in self._writing:
            self._wait(block)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Write no more than is being written. The interpreter must not end while the thread frees tensors."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(self._timeout)

    def _wait(self, block: int) -> None:
        writing = self._writing.get(block)
        if writing is not None and not writing.wait(self._timeout):
            raise TimeoutError(f"checkpoint of block {block}: not on the disk within {self._timeout:g} s")

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            block, batches, state = item
            self._report(self._write(block, batches, state))
            self._writing[block].set()

    def _write(self, block: int, batches: int, state: BlockState) -> BlockWritten:
        folder = self._shelf.folder(batches)
        path = block_file(folder, block)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # or who was this rank before has written the same
                atomic_write(path, lambda file: torch.save(state.plain(), file))
            return BlockWritten(batches, block, path.stat().st_size, sha256(path))
        except (OSError, RuntimeError) as error:  # torch says what the disk said as a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            return BlockWritten(batches, block, 0, "", reason)
