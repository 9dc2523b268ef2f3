"""Services of rank 0: metrics files, progress, checkpoint commits."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from counterflow.checkpoint import BlockWritten, CheckpointCommitter, CheckpointDirectory
from counterflow.config import TrainConfig
from counterflow.engine.factory import Engine
from counterflow.engine.job import Job
from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.progress_display import ProgressDisplay
from counterflow.metrics.report_poller import ReportPoller
from counterflow.metrics.row_assembler import RowAssembler
from counterflow.trainer.resume import CHECKPOINTS, ResumePoint, identity, versions
from counterflow.transport import Communicator


class Rank0Services:
    """Open from the beginning of a run to its end."""

    def __init__(
        self, job: Job, config: TrainConfig, point: ResumePoint, engine: Engine, comm: Communicator
    ) -> None:
        plan = job.plan
        self.evaluations: dict[str, StepMetrics] = {}
        """The last one of every split."""
        self._directory = point.directory
        self._comm = comm
        self._console = Console(quiet=not config.run.display)
        self._console.print(_setting(job, config), soft_wrap=True)
        seconds = point.directory.seconds if point.directory is not None else 0.0
        self._display = ProgressDisplay(
            self._console, plan.batches, job.batch_size, engine.owners, (plan.start, seconds)
        )
        self._rows = RowAssembler(job.topology.blocks, engine.summarize, self._sink, plan.start)
        self._committer = None
        if point.directory is not None:
            assert job.cut is not None
            self._committer = CheckpointCommitter(
                CheckpointDirectory(point.directory.path / CHECKPOINTS),
                config.checkpoint.keep,
                plan.batches,
                identity(job, config),
                list(job.cut),
                versions(job),
                warn,
                plan.start,
                comm.complete,
            )
        self._stack = ExitStack()

    def __enter__(self) -> "Rank0Services":
        if self._directory is not None:
            self._stack.enter_context(self._directory)
        self._stack.enter_context(self._display)
        self._poller = ReportPoller[BlockMetrics | BlockWritten](self._comm.size, self._fetch, self._deliver)
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def finish(self, posted: Sequence[int]) -> None:
        """Wait until all that the ranks have ``posted`` is dealt with; raises what went wrong with it."""
        self._poller.finish(posted, self._comm.watch.timeout)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """The run has finished."""
        if self._directory is not None and self._committer is not None:
            self._directory.summarise(summary)
            self._committer.finish()
        self._stack.close()
        self._console.print(self._display.table())
        where = self._directory.path / "summary.json" if self._directory is not None else ""
        self._console.print(
            f"{_accuracies(summary)}  {summary['samples_per_second']:,.0f} samples/s  "
            f"fingerprint {summary['fingerprint'][:16]}  {where}",
            soft_wrap=True,
        )

    def _fetch(self, rank: int, i: int) -> BlockMetrics | BlockWritten | None:
        text = self._comm.poll_report(rank, i)
        if text is None:
            return None
        return BlockWritten.from_json(text) if '"sha256"' in text else BlockMetrics.from_json(text)

    def _deliver(self, item: BlockMetrics | BlockWritten) -> None:
        if isinstance(item, BlockMetrics):
            self._rows.add(item)
            return
        assert self._directory is not None
        assert self._committer is not None
        try:
            self._directory.sync()  # when a checkpoint counts, the disk has what was reported before it
        except OSError as error:
            warn(f"{self._directory.path}: the metrics may be lost if the machine fails ({error.strerror})")
        self._committer.add(item)

    def _sink(self, row: StepMetrics) -> None:
        try:
            if self._directory is not None:
                self._directory.write(row)
        except OSError as error:
            assert self._directory is not None
            warn(f"{self._directory.path}: no room for the metrics of batch {row.n} yet ({error.strerror})")
        self._display.show(row)
        if row.event != "train":
            self.evaluations[row.event] = row


def _setting(job: Job, config: TrainConfig) -> str:
    assert job.cut is not None
    return (
        f"{config.algorithm.name}, {config.model.name} of {len(job.network)} layers cut {list(job.cut)} into "
        f"{config.blocks} blocks\n"
        f"processes {job.topology.ranks}, threads of each {torch.get_num_threads()} (engine.threads="
        f"{config.engine.threads}), lag {config.engine.lag}, {job.device.type} over {job.backend}\n"
        f"{config.data.name}, {job.plan.batches} batches of {config.train.batch_size}"
    )


def _accuracies(summary: Mapping[str, Any]) -> str:
    named = ((split, summary[f"{split}_accuracy"]) for split in ("validation", "test"))
    return "  ".join(f"{split} accuracy {accuracy:.4f}" for split, accuracy in named if accuracy is not None)


def warn(text: str) -> None:
    """A line for whoever watches; no reason to end."""
    print(f"note: {text}", file=sys.stderr, flush=True)
