"""Engine callback that reports the metrics of one rank's blocks to rank 0."""

from collections.abc import Callable, Mapping
from time import perf_counter

from torch import Tensor

from counterflow.metrics.block_metrics import BlockMetrics


class MetricsCallback:
    """Reports every ``every`` batches, the last batch and all evaluations. Numbers leave the device only then."""

    def __init__(
        self,
        rank: int,
        every: int,
        batches: int,
        waited: Callable[[], float],
        report: Callable[[BlockMetrics], None],
        before: float = 0.0,
    ) -> None:
        """Args:
        rank: this process's rank.
        every: batches between two reports.
        batches: training batches of the run.
        waited: returns the seconds that this rank has waited for messages so far.
        report: sends a report to rank 0.
        before: seconds of the run before it was resumed.
        """
        self._rank = rank
        self._every = every
        self._last = batches - 1
        self._waited = waited
        self._report = report
        self._before = before
        self._start = perf_counter()

    def should_log(self, n: int) -> bool:
        return n % self._every == 0 or n == self._last

    def on_step(self, block: int, n: int, metrics: Mapping[str, Tensor]) -> None:
        if self.should_log(n):
            self.on_eval(block, n, "train", {name: float(value) for name, value in metrics.items()})

    def on_eval(self, block: int, n: int, split: str, metrics: Mapping[str, float]) -> None:
        seconds = perf_counter() - self._start
        waited = self._waited() / max(seconds, 1e-9)
        self._report(BlockMetrics(split, n, block, self._rank, metrics, self._before + seconds, waited))
