"""What a simulated run adds up to: its pace, its waits and what its ranks hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from counterflow.schedule.clock import D, Span, Timetable


@dataclass(frozen=True)
class Window:
    """The batches between whose updates a run counts as steady."""

    first: int
    last: int

    @classmethod
    def of(cls, batches: int, stages: int, trip: int) -> "Window":
        """From about the middle of a run to its last batch, over whole round trips of ``trip`` batches if any fit."""
        last = batches - 1
        whole = (last - batches // 2) // trip
        if whole == 0 and last - trip >= min(stages, batches // 2):
            whole = 1
        return cls(last - whole * trip if whole else (batches - 1) // 2, last)


class Account(Generic[D]):
    """Of all ranks; ``change`` is by how much an action changes what its rank holds to learn from."""

    def __init__(self, ranks: int, window: Window, change: Callable[[D], float], keep: bool) -> None:
        self._window = window
        self._change = change
        self._busy = [0.0] * ranks
        self._held = [0.0] * ranks
        self._marks = {n: [(0.0, 0.0)] * ranks for n in (window.first, window.last)}
        """End of the update of a batch, and how long the rank had been busy by then."""
        self._first: list[float | None] = [None] * ranks
        self.in_flight = [0.0] * ranks
        self.timetable: Timetable[D] | None = Timetable([[] for _ in range(ranks)]) if keep else None

    def record(self, rank: int, deed: D, start: float, end: float) -> None:
        self._busy[rank] += end - start
        change = self._change(deed)
        if change:
            self._held[rank] += change
            if change > 0:
                self.in_flight[rank] = max(self.in_flight[rank], self._held[rank])
                if self._first[rank] is None:
                    self._first[rank] = start
        completes = deed.completes
        if completes is not None and completes[1] in self._marks:
            self._marks[completes[1]][rank] = (end, self._busy[rank])
        if self.timetable is not None:
            self.timetable.spans[rank].append(Span(deed, start, end))

    @property
    def fill(self) -> float:
        """When the last rank had its first activation."""
        first = self._first[-1]
        assert first is not None
        return first

    @property
    def seconds_per_batch(self) -> float:
        return max(seconds for seconds, _ in self._steady()) / (self._window.last - self._window.first)

    @property
    def wait_fraction(self) -> list[float]:
        return [max(0.0, 1 - busy / seconds) if seconds > 0 else 0.0 for seconds, busy in self._steady()]

    def _steady(self) -> list[tuple[float, float]]:
        """Of every rank: seconds in all, and busy ones."""
        before, after = (self._marks[n] for n in (self._window.first, self._window.last))
        return [(end - start, busy - was) for (start, was), (end, busy) in zip(before, after, strict=True)]
