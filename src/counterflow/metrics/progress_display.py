"""What a person sees on rank 0."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from counterflow.metrics.block_metrics import StepMetrics


class ProgressDisplay:
    """A progress bar and a table of all blocks; without a terminal, a line per evaluation and the table at the end."""

    def __init__(
        self,
        console: Console,
        batches: int,
        batch_size: int,
        ranks: Sequence[int],
        before: tuple[int, float] = (0, 0.0),
    ) -> None:
        """``ranks`` says who owns each block, bottom to top; ``before``, the batches and seconds that the run had when
        it was interrupted."""
        self._console = console
        self._batches = batches
        self._batch_size = batch_size
        self._ranks = ranks
        self._train: StepMetrics | None = None
        self._test: StepMetrics | None = None
        self._before = before
        self._progress = Progress(
            TextColumn("batch"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._task = self._progress.add_task("", total=batches, completed=before[0])
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._live.stop()

    def show(self, row: StepMetrics) -> None:
        if row.event == "train":
            self._train = row
            done, seconds = row.n + 1, row.seconds
            rate = (done - self._before[0]) * self._batch_size / max(seconds - self._before[1], 1e-9)
            self._before = done, seconds
            system = "  ".join(f"{name} {value:.4f}" for name, value in row.system.items())
            self._progress.update(self._task, completed=done, description=f"{rate:,.0f} samples/s  {system}")
        else:
            self._test = row
            if not self._console.is_terminal:
                accuracies = " ".join(_figure(value) for value in row.column("accuracy"))
                self._console.print(
                    f"batch {row.n + 1}/{self._batches}: {row.event} accuracy of blocks, bottom to top: {accuracies}",
                    soft_wrap=True,
                )
        if self._console.is_terminal:
            self._live.update(Group(self._progress, self.table()))

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in (
            "block",
            "rank",
            "loss",
            "accuracy",
            f"{self._test.event if self._test else 'test'} accuracy",
            "waits",
        ):
            table.add_column(name, justify="right")
        if self._train is None:
            return table
        tests = self._test.column("accuracy") if self._test else [None] * len(self._ranks)
        for record, rank, test in zip(self._train.records, self._ranks, tests, strict=True):
            figures = record.figures
            table.add_row(
                str(record.block),
                str(rank),
                _figure(figures.get("loss")),
                _figure(figures.get("accuracy")),
                _figure(test),
                f"{record.waited:.0%}",
            )
        return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
