"""TensorBoard events of a run."""

import logging
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from counterflow.metrics.block_metrics import StepMetrics
from counterflow.metrics.callback import Callback, RunInfo

_log = logging.getLogger(__name__)


class TensorBoardLogger(Callback):
    """Writes a curve for every metric of every block.

    If the disk is full, rows are skipped with a warning; training continues.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        """``path`` is the folder of the events; by default, the run directory."""
        self._path = path
        self._events: SummaryWriter | None = None

    def on_start(self, run: RunInfo) -> None:
        path = self._path or run.run_dir
        if path is None:
            raise ValueError("TensorBoardLogger: needs a path, as the run has no run directory")
        if self._path is None and run.start == 0:
            for leftover in Path(path).glob("events.out.tfevents.*"):
                leftover.unlink()
        self._events = SummaryWriter(str(path), purge_step=run.start or None)

    def on_step(self, row: StepMetrics) -> None:
        assert self._events is not None, "on_start comes first"
        try:
            for name, value in row.scalars().items():
                self._events.add_scalar(name, value, row.n)
        except OSError as error:
            _log.warning(f"{self._events.log_dir}: no TensorBoard events of batch {row.n} ({error.strerror})")

    on_eval = on_step

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
