"""One rank's reports: an `Callback` that turns what its blocks did into records."""

from collections.abc import Callable, Mapping
from time import perf_counter

from torch import Tensor

from counterflow.metrics.block_metrics import BlockMetrics


class MetricsCallback:
    """Reports every ``every`` batches, and the last one; numbers leave the device only then."""

    def __init__(
        self,
        rank: int,
        every: int,
        batches: int,
        waited: Callable[[], float],
        post: Callable[[BlockMetrics], None],
        before: float = 0.0,
    ) -> None:
        """``waited`` gives the seconds that this rank has waited so far; ``before`` are those that the run had taken
        when it was interrupted."""
        self._rank = rank
        self._every = every
        self._last = batches - 1
        self._waited = waited
        self._post = post
        self._before = before
        self._start = perf_counter()

    def should_log(self, n: int) -> bool:
        return n % self._every == 0 or n == self._last

    def on_step(self, block: int, n: int, metrics: Mapping[str, Tensor]) -> None:
        if self.should_log(n):
            self._report("train", block, n, {name: float(value) for name, value in metrics.items()})

    def on_eval(self, block: int, n: int, split: str, figures: Mapping[str, float]) -> None:
        self._report(split, block, n, figures)

    def _report(self, event: str, block: int, n: int, figures: Mapping[str, float]) -> None:
        seconds = perf_counter() - self._start
        waited = self._waited() / max(seconds, 1e-9)
        self._post(BlockMetrics(event, n, block, self._rank, figures, self._before + seconds, waited))
