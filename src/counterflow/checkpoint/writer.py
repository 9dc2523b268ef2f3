"""States of one rank's blocks: plain containers of tensors and numbers, written on a thread, and read."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.checkpoint.directory import BlockWritten, CheckpointDirectory, block_file

Messages = Mapping[int, tuple[Tensor, ...]]
"""Messages by training batch."""


@dataclass(frozen=True)
class BlockState:
    """Everything a block needs to continue after a training batch.

    Random numbers, data order and learning rates are functions of the batch index, so they are not stored.
    """

    rule: Mapping[str, Any]
    """``state_dict`` of the rule: parameters, buffers and optimizers."""
    targets: Messages = field(default_factory=dict)
    """Targets of later batches, as `LocalRule.receive_target` returned them."""
    labels: Mapping[int, Tensor] = field(default_factory=dict)
    """Labels of evaluations, by the training batch that each one follows."""
    in_flight: Messages = field(default_factory=dict)
    """Messages from the block below whose gradients have not arrived."""
    sent: Messages = field(default_factory=dict)
    """Messages on the way to the block below: the channel state of Chandy and Lamport."""

    def copy(self) -> "BlockState":
        """Deep copy in CPU memory, which training does not change."""
        return BlockState(**_copied(vars(self)))

    def to(self, device: torch.device) -> "BlockState":
        """Move all messages to ``device``; the rule's own ``load_state_dict`` places its tensors."""
        messages = {name: value for name, value in vars(self).items() if name != "rule"}
        return BlockState(self.rule, **_map(messages, lambda tensor: tensor.to(device)))


def _copied(value: Any) -> Any:
    """Deep copy of nested containers in CPU memory. A tensor that is there twice (a code book) stays one tensor."""

    @cache
    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)

    return _map(value, copied)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to all tensors in nested containers."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, function) for item in value)
    return value


@dataclass(frozen=True)
class _Item:
    """A file to write."""

    folder: Path
    written: BlockWritten
    """Its report; size and checksum are not known yet."""
    content: Any


class BlockStorage:
    """Files of blocks in the run directory, which all ranks share."""

    def write(self, folder: Path, written: BlockWritten, content: Any) -> BlockWritten:
        """Write the file of a block with ``torch.save``; ``written``, with size and checksum, or with the error."""
        path = block_file(folder, written.block)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # a restarted rank finds the file that its predecessor wrote, with the same content
                atomic_write(path, lambda file: torch.save(content, file))
            return written.of(path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for errors of the disk
            return written.failed(error)

    def open(self, folder: Path, block: int) -> IO[bytes]:
        """Open the file of a block for reading. Raises ``OSError``."""
        return block_file(folder, block).open("rb")


class CheckpointWriter:
    """Writes checkpoints on a thread while the blocks continue to train.

    A state is copied once. The next copy of the same block waits until the previous one is on the disk. Without a
    directory nothing is written and no thread starts.
    """

    def __init__(
        self,
        directory: CheckpointDirectory | None = None,
        resume_from: Path | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008  # immutable
        report: Callable[[BlockWritten], None] = lambda written: None,
        timeout: float = 300.0,
        best: CheckpointDirectory | None = None,
        storage: BlockStorage | None = None,
    ) -> None:
        """Args:
        directory: where checkpoints are written; None writes none.
        resume_from: folder of the checkpoint that the run continues from; None starts anew.
        device: where restored messages are placed.
        report: called on the writer's thread after every file.
        timeout: seconds that any wait for the disk may last.
        best: where the weights of evaluations are written; None writes none.
        storage: writes and opens files; by default in a folder that all ranks share.
        """
        self._directory = directory
        self._best = best
        self._resume_from = resume_from
        self._device = device
        self._report = report
        self._timeout = timeout
        self._storage = storage or BlockStorage()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._writing: dict[int, threading.Event] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def restore(self, block: int) -> BlockState | None:
        """State that ``block`` continues from; None at the start of a run. Nothing in the file is executed.

        Raises:
            ValueError: the file is missing or cannot be read.
        """
        if self._resume_from is None:
            return None
        path = block_file(self._resume_from, block)
        try:
            with self._storage.open(self._resume_from, block) as file:
                return BlockState(**torch.load(file, map_location="cpu", weights_only=True)).to(self._device)
        except FileNotFoundError:
            raise ValueError(
                f"{path}: is not there; run.dir has to be a folder that all nodes share, or checkpoint.transport=gather"
            ) from None
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path}: cannot be read ({reason})") from error

    def save(self, block: int, batches: int, state: BlockState) -> None:
        """Copy ``state`` of ``block`` after ``batches`` training batches, and queue it for writing.

        Raises:
            TimeoutError: the block's previous file is still not on the disk.
        """
        if self._directory is not None:
            self._put(block, batches, self._directory.folder(batches), vars(state))

    def save_evaluated(self, block: int, batches: int, weights: Mapping[str, Any]) -> None:
        """The same for the ``weights`` of ``block`` in the evaluation after ``batches`` training batches.

        Raises:
            TimeoutError: the block's previous file is still not on the disk.
        """
        if self._best is not None:
            self._put(block, batches, self._best.folder(batches), weights, evaluated=True)

    def finish(self) -> None:
        """Wait until every file is written and reported."""
        for block in self._writing:
            self._wait(block)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the current file only, and join the thread: it must not free tensors while the interpreter ends."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(self._timeout)

    def _put(self, block: int, batches: int, folder: Path, content: Any, evaluated: bool = False) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
            self._thread.start()
        self._wait(block)
        self._writing[block] = threading.Event()
        written = BlockWritten(batches, block, 0, "", evaluated=evaluated)
        self._queue.put(_Item(folder, written, _copied(content)))

    def _wait(self, block: int) -> None:
        writing = self._writing.get(block)
        if writing is not None and not writing.wait(self._timeout):
            raise TimeoutError(f"checkpoint of block {block}: not on the disk within {self._timeout:g} s")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._report(self._storage.write(item.folder, item.written, item.content))
            except Exception as error:  # raised by the next save: an exception of a thread reaches nobody
                self._error = error
            self._writing[item.written.block].set()
