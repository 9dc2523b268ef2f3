"""Callbacks of rank 0, reactions to the progress of a run, and the one that shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    tokens: int | None = None
    """Tokens of a sample of text; None for other data."""


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
            raise CallbackError(
                f"callback {type(callback).__name__}.{method}: {type(error).__name__}: {error}"
            ) from error


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
        tokens = f"  {rate * self._run.tokens:,.0f} tokens/s" if self._run.tokens else ""
        self._progress.update(self._task, completed=done, description=f"{rate:,.0f} samples/s{tokens}  {system}")
        self._refresh()

    def on_eval(self, row: StepMetrics) -> None:
        self._eval = row
        if not self._console.is_terminal:
            name, values = _evaluated(row)
            numbers = " ".join(map(_number, values))
            self._console.print(
                f"batch {row.n + 1}/{self._run.batches}: {row.event} {name} of blocks, bottom to top: {numbers}",
                soft_wrap=True,
            )
        self._refresh()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._live.stop()
        self._console.print(self.table())
        accuracies = ((split, summary.get(f"{split}_accuracy")) for split in ("validation", "test"))
        parts = [f"{split} accuracy {accuracy:.4f}" for split, accuracy in accuracies if accuracy is not None]
        for split, key in (("validation", "validation_bits_per_byte"), ("test", "bits_per_byte")):
            if summary.get(key) is not None:
                parts.append(f"{split} bits per byte {summary[key]:.4f}")
        parts.append(f"{summary['samples_per_second']:,.0f} samples/s")
        if summary.get("tokens_per_second") is not None:
            parts.append(f"{summary['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"fingerprint {summary['fingerprint'][:16]}")
        if self._run.run_dir is not None:
            parts.append(str(self._run.run_dir / "summary.json"))
        self._console.print("  ".join(parts), soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def table(self) -> Table:
        """The last metrics of all blocks, a row per block."""
        table = Table(box=None, pad_edge=False)
        owners = self._run.owners
        measure, evaluated = _evaluated(self._eval) if self._eval else ("accuracy", [None] * len(owners))
        split = self._eval.event if self._eval else "test"
        for name in ("block", "rank", "loss", "accuracy", f"{split} {measure}", "waits"):
            table.add_column(name, justify="right")
        if self._train is None:
            return table
        for record, rank, result in zip(self._train.records, owners, evaluated, strict=True):
            numbers = map(_number, (record.numbers.get("loss"), record.numbers.get("accuracy"), result))
            table.add_row(str(record.block), str(rank), *numbers, f"{record.waited:.0%}")
        return table

    def _refresh(self) -> None:
        if self._console.is_terminal:
            self._live.update(Group(self._progress, self.table()))


def _evaluated(row: StepMetrics) -> tuple[str, list[float | None]]:
    """Name and values of the metric by which an evaluation is read: bits per byte of text, else accuracy."""
    bits = row.column("bits_per_byte")
    if any(value is not None for value in bits):
        return "bits per byte", bits
    return "accuracy", row.column("accuracy")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
