"""Rank 0's thread that gathers what all ranks report, while every rank goes on training."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

_INTERVAL = 0.2
"""Seconds between looks; a display needs no more, and every look costs a core that trains."""


class ReportPoller(Generic[Item]):
    """Calls ``deliver`` with every item, those of one rank in their order, on one thread.

    ``fetch(rank, i)`` is item i of a rank, or None while it is not there.
    """

    def __init__(self, ranks: int, fetch: Callable[[int, int], Item | None], deliver: Callable[[Item], None]) -> None:
        self._fetch = fetch
        self._deliver = deliver
        self._next = [0] * ranks
        self._expected: Sequence[int] | None = None
        self._deadline = 0.0
        self._error: Exception | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def finish(self, counts: Sequence[int], timeout: float) -> None:
        """Wait until all ``counts`` items of every rank are in; raises what went wrong on the thread."""
        self._deadline = time.monotonic() + timeout
        self._expected = counts
        self._wake.set()
        self._thread.join(timeout + 1)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive() or self._next != list(counts):
            raise TimeoutError(f"{self._next} of {list(counts)} records per rank came within {timeout:g} s")

    def _run(self) -> None:
        try:
            while not self._done():
                self._wake.wait(_INTERVAL if self._expected is None else 0.01)
                self._wake.clear()
                self._look()
        except Exception as error:  # shown by finish(): a thread's exception reaches nobody by itself
            self._error = error

    def _done(self) -> bool:
        return self._expected is not None and (self._next == list(self._expected) or time.monotonic() > self._deadline)

    def _look(self) -> None:
        for rank in range(len(self._next)):
            while (item := self._fetch(rank, self._next[rank])) is not None:
                self._next[rank] += 1
                self._deliver(item)
