"""Live progress display on rank 0."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from counterflow.metrics.block_metrics import StepMetrics
from counterflow.metrics.callback import Callback, RunInfo


class ProgressDisplay(Callback):
    """Progress bar and table of all blocks; without a terminal, a line per evaluation and the table at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._run = RunInfo((), 0, 0, ())
        self._train: StepMetrics | None = None
        self._eval: StepMetrics | None = None
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def on_start(self, run: RunInfo) -> None:
        self._run = run
        self._before = run.start, run.seconds
        self._progress = Progress(
            TextColumn("batch"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._task = self._progress.add_task("", total=run.batches, completed=run.start)
        for line in run.description:
            self._console.print(line, soft_wrap=True)
        if self._console.is_terminal:
            self._live.start()

    def on_step(self, row: StepMetrics) -> None:
        self._train = row
        done, seconds = row.n + 1, row.seconds
        rate = (done - self._before[0]) * self._run.batch_size / max(seconds - self._before[1], 1e-9)
        self._before = done, seconds
        system = "  ".join(f"{name} {value:.4f}" for name, value in row.system.items())
        self._progress.update(self._task, completed=done, description=f"{rate:,.0f} samples/s  {system}")
        self._refresh()

    def on_eval(self, row: StepMetrics) -> None:
        self._eval = row
        if not self._console.is_terminal:
            accuracies = " ".join(_number(value) for value in row.column("accuracy"))
            self._console.print(
                f"batch {row.n + 1}/{self._run.batches}: {row.event} accuracy of blocks, bottom to top: {accuracies}",
                soft_wrap=True,
            )
        self._refresh()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._live.stop()
        self._console.print(self.table())
        accuracies = ((split, summary.get(f"{split}_accuracy")) for split in ("validation", "test"))
        parts = [f"{split} accuracy {accuracy:.4f}" for split, accuracy in accuracies if accuracy is not None]
        parts += [f"{summary['samples_per_second']:,.0f} samples/s", f"fingerprint {summary['fingerprint'][:16]}"]
        if self._run.run_dir is not None:
            parts.append(str(self._run.run_dir / "summary.json"))
        self._console.print("  ".join(parts), soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def table(self) -> Table:
        """The last metrics of all blocks, a row per block."""
        table = Table(box=None, pad_edge=False)
        split = self._eval.event if self._eval else "test"
        for name in ("block", "rank", "loss", "accuracy", f"{split} accuracy", "waits"):
            table.add_column(name, justify="right")
        if self._train is None:
            return table
        owners = self._run.owners
        evaluated = self._eval.column("accuracy") if self._eval else [None] * len(owners)
        for record, rank, accuracy in zip(self._train.records, owners, evaluated, strict=True):
            numbers = map(_number, (record.metrics.get("loss"), record.metrics.get("accuracy"), accuracy))
            table.add_row(str(record.block), str(rank), *numbers, f"{record.waited:.0%}")
        return table

    def _refresh(self) -> None:
        if self._console.is_terminal:
            self._live.update(Group(self._progress, self.table()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
