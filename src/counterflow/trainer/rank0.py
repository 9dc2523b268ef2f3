"""What the first process does with what all processes report: files, display, checkpoints that count."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from rich.console import Console

from counterflow.checkpoint import BlockWritten, CheckpointCommitter, CheckpointDirectory
from counterflow.engine.factory import Figures
from counterflow.engine.job import Job
from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.progress_display import ProgressDisplay
from counterflow.metrics.report_poller import ReportPoller
from counterflow.metrics.row_assembler import RowAssembler
from counterflow.trainer.resume import ResumePoint, identity, versions
from counterflow.transport import Communicator


class Rank0Services:
    """Open from the beginning of a run to its end."""

    def __init__(
        self,
        job: Job,
        origin: ResumePoint,
        shelf: CheckpointDirectory,
        cut: Sequence[int],
        owners: Sequence[int],
        summarize: Callable[[Figures], Mapping[str, float]],
        comm: Communicator,
        console: Console,
    ) -> None:
        """``owners`` are the ranks of all blocks, bottom to top, ``summarize`` makes a row's figures of theirs."""
        plan, config = job.plan, job.config
        self.evaluations: dict[str, StepMetrics] = {}
        """The last one of every split."""
        self._directory = origin.directory
        self._comm = comm
        self._display = ProgressDisplay(
            console, plan.batches, config.train.batch_size, owners, (plan.start, origin.directory.seconds)
        )
        self._rows = RowAssembler(job.topology.blocks, summarize, self._sink, plan.start)
        self._ledger = CheckpointCommitter(
            shelf,
            config.checkpoint.keep,
            plan.batches,
            identity(job),
            list(cut),
            versions(job),
            warn,
            plan.start,
            comm.announce_checkpoint,
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Rank0Services":
        self._stack.enter_context(self._directory)
        self._stack.enter_context(self._display)
        self._collector = ReportPoller[BlockMetrics | BlockWritten](self._comm.size, self._fetch, self._deliver)
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def finish(self, posted: Sequence[int]) -> None:
        """Wait until all that the ranks have ``posted`` is dealt with; raises what went wrong with it."""
        self._collector.finish(posted, self._comm.watchdog.timeout)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """The run has finished."""
        self._directory.summarise(summary)
        self._ledger.finish()

    def table(self) -> object:
        """All blocks, to be printed."""
        return self._display.table()

    def _fetch(self, rank: int, i: int) -> BlockMetrics | BlockWritten | None:
        text = self._comm.poll_report(rank, i)
        if text is None:
            return None
        return BlockWritten.from_json(text) if '"sha256"' in text else BlockMetrics.from_json(text)

    def _deliver(self, item: BlockMetrics | BlockWritten) -> None:
        if isinstance(item, BlockMetrics):
            self._rows.add(item)
            return
        try:
            self._directory.sync()  # when a checkpoint counts, the disk has what was reported before it
        except OSError as error:
            warn(f"{self._directory.path}: the metrics may be lost if the machine fails ({error.strerror})")
        self._ledger.add(item)

    def _sink(self, row: StepMetrics) -> None:
        try:
            self._directory.write(row)
        except OSError as error:
            warn(f"{self._directory.path}: no room for the metrics of batch {row.n} yet ({error.strerror})")
        self._display.show(row)
        if row.event != "train":
            self.evaluations[row.event] = row


def warn(text: str) -> None:
    """A line for whoever watches; no reason to end."""
    print(f"note: {text}", file=sys.stderr, flush=True)
