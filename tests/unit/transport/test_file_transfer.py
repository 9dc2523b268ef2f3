"""Files through the launcher's store: the same bytes, few of them in the store, and waits that end."""

import io
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore

from counterflow.transport import ChannelError
from counterflow.transport.control import Watchdog
from counterflow.transport.file_transfer import _AHEAD, _PIECE, FileTransfer
from counterflow.transport.rendezvous import LauncherStore


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=20))


def end(store: TCPStore, rank: int, timeout: float = 20.0) -> FileTransfer:
    return FileTransfer(LauncherStore(store, rank).another_connection(), Watchdog(timeout))


def background(work: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [0, 1, _PIECE, _PIECE + 1, 5 * _PIECE + 7])
def test_the_bytes_arrive(store: TCPStore, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    sending = background(end(store, 1).send, "file", io.BytesIO(content))
    assert b"".join(end(store, 0).receive("file")) == content
    sending.join(20)
    assert not sending.is_alive()


def test_few_pieces_wait_in_the_store(store: TCPStore) -> None:
    keys = store.num_keys()
    sending = background(end(store, 1).send, "file", io.BytesIO(bytes(10 * _PIECE)))
    receiver = end(store, 0)
    most = 0
    for _ in receiver.receive("file"):
        most = max(most, store.num_keys() - keys)
    sending.join(20)
    assert most <= _AHEAD + 1  # and the number by which others see that pieces move
    assert store.num_keys() - keys <= 1


def test_a_wait_ends(store: TCPStore) -> None:
    with pytest.raises(ChannelError, match=r"rank 1: waiting for file: nothing for 0.2 s \(engine.timeout\)"):
        next(end(store, 1, 0.2).receive("file"))
    with pytest.raises(ChannelError, match=r"rank 1: waiting for file/0 to be taken: nothing for 0.2 s"):
        end(store, 1, 0.2).send("file", io.BytesIO(bytes(3 * _PIECE)))


def test_it_lasts_as_long_as_other_ranks_are_served(store: TCPStore) -> None:
    """Rank 0 sends a file to rank 2, slowly, before it turns to rank 1."""
    waiting = end(store, 1, 0.5)
    server, other = end(store, 0), end(store, 2)
    taken: list[str] = []
    thread = background(lambda: taken.append(waiting.take("answer")))
    for number in range(10):
        server.send(f"{number}", io.BytesIO(b"."))
        assert b"".join(other.receive(f"{number}")) == b"."
        thread.join(0.1)
    server.store.set("answer", "yes")
    thread.join(20)
    assert taken == ["yes"]


def test_a_lost_rank_ends_it(store: TCPStore) -> None:
    transfer = end(store, 1)
    transfer._watchdog.lose("lost rank 0")
    with pytest.raises(ChannelError, match=r"^rank 1: waiting for file: lost rank 0$"):
        next(transfer.receive("file"))
