"""What the first process does with what all processes report: files, display, checkpoints that count."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from counterflow.checkpoint import BlockWritten, CheckpointCommitter, CheckpointDirectory, ManifestHeader
from counterflow.engine.factory import Figures
from counterflow.engine.job import Job
from counterflow.metrics import provenance
from counterflow.metrics.block_metrics import BlockMetrics, RowAssembler, StepMetrics
from counterflow.metrics.callback import Callback, RunInfo, notify
from counterflow.metrics.report_poller import ReportPoller
from counterflow.trainer.resume import ResumePoint, identity
from counterflow.transport import Communicator

warn = logging.getLogger(__name__).warning


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
        callbacks: Sequence[Callback],
        description: Sequence[str],
    ) -> None:
        """``owners`` are the ranks of all blocks, bottom to top, ``summarize`` makes a row's figures of theirs."""
        plan, config = job.plan, job.config
        self.evaluations: dict[str, StepMetrics] = {}
        """The last one of every split."""
        self._directory = origin.directory
        self._comm = comm
        self._callbacks = callbacks
        self._info = RunInfo(
            description,
            plan.batches,
            config.train.batch_size,
            owners,
            plan.start,
            origin.directory.seconds,
            origin.directory.path,
        )
        self._rows = RowAssembler(job.topology.blocks, summarize, self._sink, plan.start)
        self._ledger = CheckpointCommitter(
            shelf,
            ManifestHeader(identity(job), list(cut), provenance.versions(job.device)),
            config.checkpoint.keep,
            plan.batches,
            plan.start,
            comm.complete,
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Rank0Services":
        self._stack.enter_context(self._directory)
        for callback in self._callbacks:
            self._stack.callback(notify, [callback], "close")
        try:
            notify(self._callbacks, "on_start", self._info)
        except BaseException:
            self._stack.close()
            raise
        self._collector = ReportPoller[BlockMetrics | BlockWritten](self._comm.size, self._fetch, self._deliver)
        self._stack.callback(self._collector.close)
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise what ended the thread that serves reports, such as an exception of a callback."""
        self._collector.check()

    def finish(self, posted: Sequence[int]) -> None:
        """Wait until all that the ranks have ``posted`` is dealt with; raises what went wrong with it."""
        self._collector.finish(posted, self._comm.watch.timeout)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """The run has finished."""
        self._directory.finish(summary)
        self._ledger.finish()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Tell the callbacks that the run has finished."""
        notify(self._callbacks, "on_end", summary)

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
        if row.event != "train":
            self.evaluations[row.event] = row
        notify(self._callbacks, "on_step" if row.event == "train" else "on_eval", row)
