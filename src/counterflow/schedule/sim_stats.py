"""Statistics of a simulated run: its pace, its waits and the activations that its ranks hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from counterflow.schedule.event_sim import A, Span, Timetable


@dataclass(frozen=True)
class Forecast:
    """Predicted pace, waits and memory of a run."""

    seconds_per_batch: float
    """Seconds of an update batch in the slowest rank, in steady state."""
    wait_fraction: list[float]
    """Share of its steady state that each rank waits for messages and for its sends."""
    in_flight: list[float]
    """Most activations that each rank holds to learn from them; 1.0 are those of one block for an update batch."""
    buffered: list[float]
    """Messages of an update batch for which each rank's channels have activation buffers (free only)."""
    fill: float
    """Seconds until the last rank has its first activation."""
    timetable: Timetable[Any] | None
    """Spans of each rank, if they were kept."""


def steady_window(batches: int, stages: int, round_trip: int) -> tuple[int, int]:
    """First and last of the batches between whose updates a run counts as steady.

    The window begins about the middle of the run, and spans whole round trips if any fit.

    Args:
        batches: Batches of the run.
        stages: Stages, each of which delays the first batch by one.
        round_trip: Batches after which the pattern of waits repeats.
    """
    last = batches - 1
    whole = (last - batches // 2) // round_trip
    if whole == 0 and last - round_trip >= min(stages, batches // 2):
        whole = 1
    return (last - whole * round_trip if whole else (batches - 1) // 2), last


class SimStats(Generic[A]):
    """Running statistics of all ranks.

    Args:
        ranks: Number of ranks.
        window: First and last batch of the `steady_window`.
        change: Amount by which an action changes the activations that its rank holds.
        keep: Keep the timetable.
    """

    def __init__(self, ranks: int, window: tuple[int, int], change: Callable[[A], float], keep: bool) -> None:
        self._window = window
        self._change = change
        self._busy = [0.0] * ranks
        self._held = [0.0] * ranks
        self._in_flight = [0.0] * ranks
        self._marks = {n: [(0.0, 0.0)] * ranks for n in window}
        """End of the update of a batch, and the rank's busy seconds until then."""
        self._fill: float | None = None
        self._timetable: Timetable[A] | None = Timetable([[] for _ in range(ranks)]) if keep else None

    def record(self, rank: int, action: A, start: float, end: float) -> None:
        self._busy[rank] += end - start
        change = self._change(action)
        if change:
            self._held[rank] += change
            self._in_flight[rank] = max(self._in_flight[rank], self._held[rank])
            if self._fill is None and rank == len(self._busy) - 1:
                self._fill = start
        completes = action.completes
        if completes is not None and completes[1] in self._marks:
            self._marks[completes[1]][rank] = (end, self._busy[rank])
        if self._timetable is not None:
            self._timetable.spans[rank].append(Span(action, start, end))

    def forecast(self, buffered: Sequence[float]) -> Forecast:
        """Forecast of the run that was recorded; ``buffered`` goes into it."""
        before, after = (self._marks[n] for n in self._window)
        steady = [(end - start, busy - was) for (start, was), (end, busy) in zip(before, after, strict=True)]
        assert self._fill is not None
        return Forecast(
            seconds_per_batch=max(seconds for seconds, _ in steady) / (self._window[1] - self._window[0]),
            wait_fraction=[max(0.0, 1 - busy / seconds) if seconds > 0 else 0.0 for seconds, busy in steady],
            in_flight=self._in_flight,
            buffered=list(buffered),
            fill=self._fill,
            timetable=self._timetable,
        )
