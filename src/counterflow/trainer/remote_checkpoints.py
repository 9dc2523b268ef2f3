"""Checkpoints of ranks that do not see the run directory (``checkpoint.transport=gather``): rank 0 writes and reads.

A rank other than 0 asks for one thing at a time: rank 0 to write a file of a block, which the rank sends, or to send it
one. It asks on the thread that writes checkpoints, so its blocks train on. Rank 0 answers on a thread as well.
"""

import json
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import torch

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.checkpoint.directory import BlockWritten, CheckpointDirectory, block_file
from counterflow.checkpoint.writer import BlockStorage
from counterflow.transport import ChannelError, Communicator
from counterflow.transport.file_transfer import FileTransfer

_POLL_INTERVAL = 0.1
"""Seconds between two looks for what ranks ask."""
_ENDS_WITHIN = 1.0
"""Seconds that the end of a run with an error waits for the thread."""


class RemoteStorage(BlockStorage):
    """Files of a rank's blocks on the disk of rank 0."""

    def __init__(self, comm: Communicator) -> None:
        self._rank = comm.rank
        self._files: FileTransfer = comm.file_transfer()

    def write(self, folder: Path, written: BlockWritten, content: Any) -> BlockWritten:
        # The state is twice in memory already: its file goes through the disk.
        with tempfile.TemporaryFile(prefix="counterflow-checkpoint-") as file:
            torch.save(content, file)
            file.seek(0)
            self._ask(written.to_json())
            self._files.send(f"file/{self._rank}", file)
        return BlockWritten.from_json(self._files.take(f"answer/{self._rank}"))

    def open(self, folder: Path, block: int) -> IO[bytes]:
        self._ask(json.dumps({"block": block}))
        if error := self._files.take(f"answer/{self._rank}"):
            raise OSError(error)
        file = tempfile.TemporaryFile(prefix="counterflow-checkpoint-")  # noqa: SIM115
        for piece in self._files.receive(f"file/{self._rank}"):
            file.write(piece)
        file.seek(0)
        return file

    def _ask(self, text: str) -> None:
        self._files.store.set(f"request/{self._rank}", text)


class CheckpointServer:
    """Thread of rank 0 that answers `RemoteStorage` of all other ranks, one after the other."""

    def __init__(
        self,
        comm: Communicator,
        directory: CheckpointDirectory,
        evaluated: CheckpointDirectory | None,
        resume_from: Path | None,
    ) -> None:
        """Start the thread.

        Args:
            comm: The processes of the run.
            directory: Takes checkpoints.
            evaluated: Takes weights of evaluations.
            resume_from: Folder of the checkpoint that the run continues from.
        """
        self._comm = comm
        self._directory = directory
        self._evaluated = evaluated
        self._resume_from = resume_from
        self._files: FileTransfer = comm.file_transfer()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint-server", daemon=True)
        self._thread.start()

    def __enter__(self) -> "CheckpointServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()
        # After an error nothing that is under way counts, and other ranks learn of it by the end of this process.
        self._thread.join(self._comm.watchdog.timeout if kind is None else _ENDS_WITHIN)

    def _run(self) -> None:
        store = self._files.store
        try:
            while not self._closing.wait(_POLL_INTERVAL):
                for rank in range(1, self._comm.size):
                    if store.has(f"request/{rank}"):
                        self._answer(rank, json.loads(self._files.take(f"request/{rank}")))
        except ChannelError as error:
            self._comm.watchdog.fail(error)
        except Exception as error:  # would be lost with the thread, and the other ranks wait in vain
            self._comm.watchdog.fail(ChannelError(f"rank 0: checkpoints of other ranks: {error!r}"))

    def _answer(self, rank: int, request: dict[str, Any]) -> None:
        answer = f"answer/{rank}"
        if "batches" in request:
            self._files.store.set(answer, self._write(rank, BlockWritten(**request)).to_json())
            return
        assert self._resume_from is not None, "ranks read the checkpoint that all resume from"
        try:
            file = block_file(self._resume_from, request["block"]).open("rb")
        except OSError as error:
            self._files.store.set(answer, error.strerror or str(error))
            return
        with file:
            self._files.store.set(answer, "")
            self._files.send(f"file/{rank}", file)

    def _write(self, rank: int, written: BlockWritten) -> BlockWritten:
        directory = self._evaluated if written.evaluated else self._directory
        assert directory is not None, "blocks write no weights unasked"
        path, pieces = block_file(directory.folder(written.batches), written.block), self._files.receive(f"file/{rank}")

        def write(file: IO[bytes]) -> None:
            for piece in pieces:
                file.write(piece)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, write)
            return written.of(path)
        except OSError as error:
            return written.failed(error)
        finally:
            for _ in pieces:  # of a disk that took no more
                pass
