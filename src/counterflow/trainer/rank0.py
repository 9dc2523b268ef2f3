"""Services of rank 0: metrics files, callbacks, checkpoint commits."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from counterflow.checkpoint import BlockWritten, CheckpointCommitter, CheckpointDirectory, ManifestHeader
from counterflow.config import TrainConfig
from counterflow.engine.factory import Engine
from counterflow.engine.job import Job
from counterflow.metrics import provenance
from counterflow.metrics.block_metrics import BlockMetrics, ReportPoller, RowAssembler, StepMetrics
from counterflow.metrics.callback import Callback, RunInfo, notify
from counterflow.trainer.resume import CHECKPOINTS, ResumePoint, identity
from counterflow.transport import Communicator

_log = logging.getLogger(__name__)


class Rank0Services:
    """Serves the reports of all ranks on a thread, from the start of a run to its end."""

    def __init__(
        self,
        job: Job,
        config: TrainConfig,
        point: ResumePoint,
        engine: Engine,
        comm: Communicator,
        callbacks: Sequence[Callback],
    ) -> None:
        """Args:
        job: the run, whose cut is settled.
        config: its description.
        point: where it starts; without a directory nothing is written.
        engine: its blocks' owners, and their summary.
        comm: the processes of the run.
        callbacks: called in their order.
        """
        assert job.cut is not None
        plan, directory = job.plan, point.directory
        self.evaluations: dict[str, StepMetrics] = {}
        """The last evaluation of every split."""
        self._directory = directory
        self._comm = comm
        self._callbacks = callbacks
        self._info = RunInfo(
            _description(job, config),
            plan.batches,
            job.batch_size,
            engine.owners,
            plan.start,
            directory.seconds if directory is not None else 0.0,
            directory.path if directory is not None else None,
        )
        self._rows = RowAssembler(job.topology.blocks, engine.summarize, self._sink, plan.start)
        self._committer: CheckpointCommitter | None = None
        if directory is not None:
            self._committer = CheckpointCommitter(
                CheckpointDirectory(directory.path / CHECKPOINTS),
                ManifestHeader(identity(job, config), list(job.cut), provenance.versions(job.device)),
                config.checkpoint.keep,
                plan.batches,
                plan.start,
                comm.announce_checkpoint,
            )
        self._stack = ExitStack()

    def __enter__(self) -> "Rank0Services":
        with ExitStack() as stack:
            for callback in self._callbacks:
                stack.callback(notify, [callback], "close")
            notify(self._callbacks, "on_start", self._info)
            self._stack = stack.pop_all()
        self._poller = ReportPoller[BlockMetrics | BlockWritten](self._comm.size, self._fetch, self._deliver)
        self._stack.callback(self._poller.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise the error that ended the thread, such as an exception of a callback."""
        self._poller.check()

    def finish(self, counts: Sequence[int]) -> None:
        """Wait until all reports are served: ``counts`` of each rank. Raises the error that ended the thread."""
        self._poller.finish(counts, self._comm.watchdog.timeout)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished."""
        if self._directory is not None and self._committer is not None:
            self._directory.finish(summary)
            self._committer.finish()

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
        assert self._directory is not None, "a checkpoint needs a directory"
        assert self._committer is not None
        try:
            self._directory.sync()  # when a checkpoint counts, the disk has the metrics that were reported before it
        except OSError as error:
            _log.warning(f"{self._directory.path}: the metrics may be lost if the machine fails ({error.strerror})")
        self._committer.add(item)

    def _sink(self, row: StepMetrics) -> None:
        if self._directory is not None:
            try:
                self._directory.write(row)
            except OSError as error:
                _log.warning(f"{self._directory.path}: no room for the metrics of batch {row.n} yet ({error.strerror})")
        if row.event != "train":
            self.evaluations[row.event] = row
        notify(self._callbacks, "on_step" if row.event == "train" else "on_eval", row)


def _description(job: Job, config: TrainConfig) -> list[str]:
    assert job.cut is not None
    return [
        f"{config.algorithm.name}, {config.model.name} of {len(job.network)} layers cut {list(job.cut)} into "
        f"{config.blocks} blocks",
        f"processes {job.topology.ranks}, threads of each {torch.get_num_threads()} (engine.threads="
        f"{config.engine.threads}), lag {config.engine.lag}, {job.device.type} over {job.backend}",
        f"{config.data.name}, {job.plan.batches} batches of {job.batch_size}",
    ]
