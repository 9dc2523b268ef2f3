"""Files of blocks that rank 0 writes and reads for the others, with both ends on threads of this process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from counterflow.checkpoint.directory import BlockWritten, CheckpointDirectory, block_file
from counterflow.checkpoint.writer import BlockStorage
from counterflow.trainer.remote_checkpoints import CheckpointServer, RemoteStorage
from counterflow.transport.control import Watchdog
from counterflow.transport.file_transfer import FileTransfer
from counterflow.transport.rendezvous import LauncherStore

CONTENT = {"rule": {"weight": torch.arange(300_000.0)}, "targets": {}}
ELSEWHERE = Path("/a/folder/that/only/rank/0/sees")


@dataclass
class Rank:
    """The part of a communicator that is used."""

    store: TCPStore
    rank: int
    size: int = 3
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(20.0))

    def file_transfer(self) -> FileTransfer:
        return FileTransfer(LauncherStore(self.store, self.rank).another_connection(), self.watchdog)


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=20))


@pytest.fixture
def served(store: TCPStore, tmp_path: Path) -> Iterator[CheckpointDirectory]:
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    main: Any = Rank(store, 0)
    with CheckpointServer(main, directory, None, directory.folder(10)):
        yield directory


def remote(store: TCPStore, rank: int) -> RemoteStorage:
    comm: Any = Rank(store, rank)
    return RemoteStorage(comm)


def test_the_file_is_the_one_that_the_rank_would_write(
    store: TCPStore, served: CheckpointDirectory, tmp_path: Path
) -> None:
    for rank in (1, 2):
        written = remote(store, rank).write(ELSEWHERE, BlockWritten(10, rank, 0, ""), CONTENT)
        assert written == BlockStorage().write(tmp_path / "own", BlockWritten(10, rank, 0, ""), CONTENT)
        sent, own = (block_file(folder, rank).read_bytes() for folder in (served.folder(10), tmp_path / "own"))
        assert sent == own
        with remote(store, rank).open(ELSEWHERE, rank) as file:
            assert file.read() == own


def test_a_disk_of_rank_0_that_takes_nothing_costs_that_checkpoint_alone(
    store: TCPStore, served: CheckpointDirectory
) -> None:
    served.path.mkdir()
    served.folder(10).write_text("a file in its place")
    storage = remote(store, 1)
    failed = storage.write(ELSEWHERE, BlockWritten(10, 1, 0, ""), CONTENT)
    assert (failed.error, failed.nbytes) == ("File exists", 0)
    assert storage.write(ELSEWHERE, BlockWritten(20, 1, 0, ""), CONTENT).error == ""
    assert block_file(served.folder(20), 1).exists()


def test_a_file_that_is_not_there_is_an_error(store: TCPStore, served: CheckpointDirectory) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        remote(store, 1).open(ELSEWHERE, 1)
