"""Rank 0's thread that gathers the records of all ranks into rows, while every rank goes on training."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from counterflow.metrics.record import Record, Row

_INTERVAL = 0.2
"""Seconds between looks; a display needs no more, and every look costs a core that trains."""


class Collector:
    """Calls ``sink`` with every row, in the order of batches, on one thread.

    ``fetch(rank, i)`` is record i of a rank, or None while it is not there.
    """

    def __init__(
        self,
        ranks: int,
        blocks: int,
        fetch: Callable[[int, int], Record | None],
        objective: Callable[[Sequence[Mapping[str, float]]], Mapping[str, float]],
        sink: Callable[[Row], None],
    ) -> None:
        self._blocks = blocks
        self._fetch = fetch
        self._objective = objective
        self._sink = sink
        self._next = [0] * ranks
        self._partial: dict[tuple[int, str], list[Record]] = defaultdict(list)
        self._expected: Sequence[int] | None = None
        self._deadline = 0.0
        self._error: Exception | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def finish(self, counts: Sequence[int], timeout: float) -> None:
        """Wait until all ``counts`` records of every rank are in; raises what went wrong on the thread."""
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
            while (record := self._fetch(rank, self._next[rank])) is not None:
                self._next[rank] += 1
                self._add(record)

    def _add(self, record: Record) -> None:
        key = (record.n, record.event)
        self._partial[key].append(record)
        if len(self._partial[key]) < self._blocks:
            return
        records = sorted(self._partial.pop(key), key=lambda r: r.block)
        system = self._objective([r.figures for r in records]) if record.event == "train" else {}
        self._sink(Row(record.event, record.n, records, system))
