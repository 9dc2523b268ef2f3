"""Polling thread of rank 0 that gathers the reports of all ranks while they train."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

_INTERVAL = 0.2
"""Seconds between polls. A display needs no more, and every poll takes time from a core that trains."""


class ReportPoller(Generic[Item]):
    """Calls ``deliver`` with every report, on one thread; reports of one rank come in their order."""

    def __init__(self, ranks: int, fetch: Callable[[int, int], Item | None], deliver: Callable[[Item], None]) -> None:
        """Start the thread. ``fetch(rank, i)`` returns report i of a rank, or None if it has not arrived."""
        self._fetch = fetch
        self._deliver = deliver
        self._next = [0] * ranks
        self._expected: Sequence[int] | None = None
        self._deadline = 0.0
        self._error: Exception | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report-poller", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the exception that ended the thread, if there was one."""
        if self._error is not None:
            raise self._error

    def finish(self, counts: Sequence[int], timeout: float) -> None:
        """Wait until ``counts`` reports of every rank are delivered, at most ``timeout`` seconds.

        Raises:
            TimeoutError: some did not arrive.
            Exception: as raised on the thread.
        """
        self._deadline = time.monotonic() + timeout
        self._expected = counts
        self._wake.set()
        self._thread.join(timeout + 1)
        self.check()
        if self._thread.is_alive() or self._next != list(counts):
            raise TimeoutError(f"{self._next} of {list(counts)} records per rank came within {timeout:g} s")

    def close(self) -> None:
        """Stop the thread; reports that have not arrived are dropped."""
        self._deadline, self._expected = 0.0, ()
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while not self._done():
                self._wake.wait(_INTERVAL if self._expected is None else 0.01)
                self._wake.clear()
                self._poll()
        except Exception as error:  # raised again by check() and finish() on the caller's thread
            self._error = error

    def _done(self) -> bool:
        return self._expected is not None and (self._next == list(self._expected) or time.monotonic() > self._deadline)

    def _poll(self) -> None:
        for rank in range(len(self._next)):
            while (item := self._fetch(rank, self._next[rank])) is not None:
                self._next[rank] += 1
                self._deliver(item)
