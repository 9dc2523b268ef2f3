"""When a rank had learnt which batch: an `Callback` that takes the time, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from counterflow.algorithms.rule import Metrics
from counterflow.engine.stage import WaitTimes


@dataclass(frozen=True)
class Lap:
    """The steady part of one rank's run."""

    seconds: float
    batches: int
    receive_wait: float
    send_wait: float


class Stopwatch:
    """Of ``batches`` batches, those before ``first`` warm up and fill."""

    def __init__(self, waits: WaitTimes, first: int, batches: int) -> None:
        assert 0 < first < batches
        self._waits = waits
        self._first = first
        self._last = batches - 1
        self._marks: dict[int, tuple[float, float, float]] = {}

    def should_log(self, n: int) -> bool:
        return False

    def on_step(self, block: int, n: int, metrics: Metrics) -> None:
        if n in (self._first - 1, self._last):  # of several blocks of a rank, the last one counts
            self._marks[n] = perf_counter(), self._waits.receive, self._waits.send

    def on_eval(self, block: int, n: int, split: str, figures: Mapping[str, float]) -> None:
        raise AssertionError("nothing is evaluated here")

    def lap(self) -> Lap:
        seconds, received, sent = (
            after - before for before, after in zip(self._marks[self._first - 1], self._marks[self._last], strict=True)
        )
        return Lap(seconds, self._last - self._first + 1, received, sent)
