"""Files between rank 0 and the others through the launcher's store, in pieces, where nodes share no folder."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

from counterflow.transport.control import Watchdog
from counterflow.transport.rendezvous import LauncherStore

_PIECE = 1 << 20
"""Bytes of a value of the store: torch's TCPStore refuses 8 MB and more."""
_AHEAD = 2
"""Pieces of a file that wait in the store to be taken."""
_POLL_INTERVAL = 0.01
"""Seconds between two looks at the store."""
_MOVED = "moved"
"""Key of a number that rank 0 changes with every piece."""


class FileTransfer:
    """Sends and receives on a connection to the store of its own: other messages do not wait for a piece to pass.

    Rank 0 serves one rank after the other. The others see that it is at work, so a wait ends ``engine.timeout`` after
    the last piece of any of them.
    """

    def __init__(self, store: LauncherStore, watchdog: Watchdog) -> None:
        """``store`` is used by one thread alone; ``watchdog`` ends the waits."""
        self.store = store
        self._watchdog = watchdog
        self._moved = 0

    def send(self, name: str, file: IO[bytes]) -> None:
        """Send the rest of ``file``; returns before the last pieces are taken.

        Args:
            name: Unique among the files that are under way.
            file: Open for reading.

        Raises:
            ChannelError: The pieces were not taken in time, a rank is lost, or the store is.
        """
        count = 0
        for piece in iter(partial(file.read, _PIECE), b""):
            self._put(name, count, piece)
            count += 1
        self._put(name, count, b"")

    def receive(self, name: str) -> Iterator[bytes]:
        """The pieces of a file, which must all be taken; raises as `send`."""
        count = 0
        while True:
            key = f"{name}/{count}"
            self.until(partial(self.store.has, key), name)
            piece = self.store.get(key)
            self.store.delete(key)
            if not piece:
                return
            self._note_progress()
            yield piece
            count += 1

    def take(self, key: str) -> str:
        """Wait for what the other rank says as ``key``; raises as `send`."""
        self.until(partial(self.store.has, key), key)
        text = self.store.get(key).decode()
        self.store.delete(key)
        return text

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until ``ready()``; ``what`` names it in errors."""
        what = f"rank {self.store.rank}: waiting for {what}"
        seen, deadline = b"", time.monotonic() + self._watchdog.timeout
        while not ready():
            self._watchdog.check(what)
            if time.monotonic() > deadline:
                now = self.store.get(_MOVED) if self.store.has(_MOVED) else b""
                if now == seen:
                    raise self._watchdog.timed_out(what)
                seen, deadline = now, time.monotonic() + self._watchdog.timeout
            time.sleep(_POLL_INTERVAL)

    def _put(self, name: str, count: int, piece: bytes) -> None:
        if count >= _AHEAD:
            taken = f"{name}/{count - _AHEAD}"
            self.until(lambda: not self.store.has(taken), f"{taken} to be taken")
        self.store.set(f"{name}/{count}", piece)
        self._note_progress()

    def _note_progress(self) -> None:
        if self.store.rank == 0:
            self._moved += 1
            self.store.set(_MOVED, str(self._moved))
