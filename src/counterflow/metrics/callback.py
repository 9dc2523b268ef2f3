"""Callbacks of rank 0: reactions to the progress of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterflow.metrics.block_metrics import StepMetrics


@dataclass(frozen=True)
class RunInfo:
    """Facts about a run that are known when it starts."""

    description: Sequence[str]
    """Lines for a person: algorithm, model, processes, data."""
    batches: int
    """Training batches of the whole run."""
    batch_size: int
    owners: Sequence[int]
    """Rank of every block, bottom to top."""
    start: int = 0
    """Training batches before the run was resumed; 0 for a new run."""
    seconds: float = 0.0
    """Seconds that the run had taken before it was resumed."""
    run_dir: Path | None = None
    """Run directory, if the run writes one."""


class Callback:
    """Reactions of rank 0 to a run: override what you need.

    `on_step` and `on_eval` run on a thread of rank 0, one call at a time and in the order of batches, while training
    continues. An exception ends the run with an error that names the callback.
    """

    def on_start(self, run: RunInfo) -> None:
        """Called once, before the first batch."""

    def on_step(self, row: StepMetrics) -> None:
        """Called with the training metrics of every logged batch."""

    def on_eval(self, row: StepMetrics) -> None:
        """Called with every evaluation; ``row.event`` is the split, ``validation`` or ``test``."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called once, after the last batch; not called if the run was interrupted or failed."""

    def close(self) -> None:
        """Called last, however the run ended."""


class CallbackError(Exception):
    """An exception in a callback; the text names the callback, the method and the exception, which is chained."""


def notify(callbacks: Sequence[Callback], method: str, *args: object) -> None:
    """Call ``method`` of all ``callbacks``, in their order.

    Raises:
        CallbackError: one of them raised an exception; those after it are not called.
    """
    for callback in callbacks:
        try:
            getattr(callback, method)(*args)
        except Exception as error:
            name = f"{type(callback).__name__}.{method}"
            raise CallbackError(f"callback {name}: {type(error).__name__}: {error}") from error
