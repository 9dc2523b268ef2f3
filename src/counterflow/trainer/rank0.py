"""Rank 0's part of a run: where it begins, metrics files, callbacks, checkpoint commits."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterflow.checkpoint import (
    BestWeights,
    BlockWritten,
    CheckpointCommitter,
    CheckpointDirectory,
    Manifest,
    ManifestHeader,
)
from counterflow.checkpoint.directory import NAME, CorruptCheckpointError, load
from counterflow.config import PIPELINES, TrainConfig
from counterflow.engine.factory import Engine
from counterflow.engine.job import Job
from counterflow.metrics import provenance
from counterflow.metrics.block_metrics import BlockMetrics, ReportPoller, RowAssembler, StepMetrics
from counterflow.metrics.callback import Callback, RunInfo, notify
from counterflow.metrics.run_dir import FinishedError, Found, InUseError, RunDirectory, config_diff
from counterflow.trainer.early_stopping import Patience
from counterflow.transport import Communicator

_log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""In a run directory."""

EVALUATED = "evaluated"
"""In a run directory, until the run ends: weights of the best evaluation so far, and of those not yet compared."""


@dataclass(frozen=True)
class ResumePoint:
    """Start of a run. Rank 0 finds it, and sends it to the other ranks without the ``directory``."""

    directory: RunDirectory | None = None
    """None for a run that writes nothing."""
    path: Path | None = None
    """The folder of ``directory``, absolute."""
    seconds: float = 0.0
    """Seconds of the run before."""
    checkpoint: Path | None = None
    """The folder of the checkpoint that the run goes on from; None if it begins anew."""
    batches: int = 0
    """Training batches before."""
    cut: Sequence[int] | None = None
    """Layers of every block: of the checkpoint, or as rank 0 then chooses for all ranks."""


def open_run_dir(job: Job, config: TrainConfig, log: Callable[[str], None], alone: bool = True) -> ResumePoint:
    """Make or open the run directory ``config.run.dir``, as ``run.resume`` says.

    Args:
        job: The run.
        config: Its description.
        log: Called with a line about each thing that was found.
        alone: No other process of the run is at work in the directory, or writes checkpoints.

    Raises:
        FinishedError: The directory holds this run, and it has finished.
        InUseError: Another process writes it.
        ValueError: It holds another run, or a checkpoint is of another configuration.
    """
    path = Path(config.run.dir or "")
    directory = RunDirectory(path, config)
    found, resume = directory.found, config.run.resume
    checkpoints = CheckpointDirectory(path / CHECKPOINTS)
    try:
        if found is Found.RUNNING:
            raise InUseError(f"run.dir={path}: another process writes it")
        if found is Found.FINISHED:
            raise FinishedError(f"run.dir={path}: already holds a finished run, choose another one or remove it")
        if found is Found.INTERRUPTED and resume == "never":
            raise ValueError(f"run.dir={path}: already holds a run, which run.resume=auto would go on with")
        begin = None if resume in ("auto", "never") else _named(resume, path, job, config, log)
        if resume != "never" and (own := checkpoints.latest(job.plan.batches, log)) is not None:
            begin = _checked(own, job, config, log)
        batches = begin[1].batches if begin is not None else 0
        directory.begin(batches)
        if alone:
            checkpoints.forget_after(batches)
            CheckpointDirectory(path / EVALUATED).forget_after(batches)
    except BaseException:
        directory.close()
        raise
    if begin is None:
        if found is Found.INTERRUPTED:
            log(f"{path}: was interrupted before its first checkpoint, begins anew")
        return ResumePoint(directory, path.resolve())
    folder, manifest = begin
    log(f"{path}: goes on after batch {batches - 1} from {folder}")
    return ResumePoint(directory, path.resolve(), directory.seconds, folder.resolve(), batches, manifest.cut)


def _named(resume: str, path: Path, job: Job, config: TrainConfig, log: Callable[[str], None]) -> tuple[Path, Manifest]:
    """The checkpoint that ``run.resume=PATH`` names."""
    folder = Path(resume)
    if folder.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"run.resume={resume}: is in run.dir={path}, allowed there are auto, never")
    found = None
    if (folder / NAME).exists():
        try:
            found = folder, load(folder)
        except CorruptCheckpointError as error:
            raise ValueError(f"run.resume={resume}: is no whole checkpoint ({error})") from error
    elif (folder / CHECKPOINTS).is_dir():
        found = CheckpointDirectory(folder / CHECKPOINTS).latest(job.plan.batches, log)
    if found is None:
        raise ValueError(
            f"run.resume={resume}: allowed are auto, never, the folder of a checkpoint or of a run that has one"
        )
    return _checked(found, job, config, log)


def _checked(
    found: tuple[Path, Manifest], job: Job, config: TrainConfig, log: Callable[[str], None]
) -> tuple[Path, Manifest]:
    """``found``. ``ValueError`` where ``job`` would not end with the bits of the run that wrote it."""
    folder, manifest = found
    here = json.loads(json.dumps(identity(job, config)))
    if manifest.identity != here:
        raise ValueError(f"run.resume: {folder} is of another configuration: {config_diff(manifest.identity, here)}")
    if manifest.batches >= job.plan.batches:
        raise ValueError(f"run.resume: {folder} is of the end of a run, nothing is left of {job.plan.batches} batches")
    for name, now in provenance.versions(job.device).items():
        before = manifest.versions.get(name)
        if before != now:
            log(f"{folder} was computed with {name} {before}, here is {now}: numbers may be rounded otherwise")
    return found


def identity(job: Job, config: TrainConfig) -> Mapping[str, Any]:
    """Everything that the result of ``job`` depends on, by key: the value in use where a key may be ``auto``."""
    used: dict[str, Any] = {
        "engine.threads": torch.get_num_threads(),
        "engine.precision": job.runtime.precision,
        "device": job.device.type,
        "schedule": job.schedule,
        "data.root": job.batches.dataset.digest,
    }
    if (tokenizer := job.batches.dataset.tokenizer) is not None:
        used["data.tokenizer"] = hashlib.sha256(tokenizer).hexdigest()[:16]
    if job.schedule in PIPELINES:  # gradients of micro-batches add up differently on one process and on several
        used["ranks"] = job.topology.ranks
    if config.train.patience:  # the end comes when no channel has posted a later batch
        used |= {"engine.depth": config.engine.depth, "engine.target_depth": config.engine.target_depth}
    return {**provenance.settings(config), **used}


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
            [
                f"{config.algorithm.name}, {config.model.name} of {len(job.network)} layers cut {list(job.cut)} into "
                f"{config.blocks} blocks",
                f"{f'replicas {config.replicas}, ' if config.replicas > 1 else ''}"
                f"processes {job.topology.ranks}, threads of each {torch.get_num_threads()} (engine.threads="
                f"{config.engine.threads}), lag {config.engine.lag}, {job.device.type} over {job.backend}",
                f"{config.data.name}, {plan.batches} batches of {job.batch_size}",
            ],
            plan.batches,
            job.batch_size,
            engine.owners,
            plan.start,
            point.seconds,
            directory.path if directory is not None else None,
            None if job.batches.dataset.tokens_per_byte is None else job.task.input_shape[0],
        )
        self._rows = RowAssembler(job.topology.blocks, engine.summarize, self._sink, plan.start, job.topology.replicas)
        self.best: BestWeights | None = None
        """Weights of the best evaluation, if they are kept."""
        if directory is not None and config.checkpoint.best:
            folder = CheckpointDirectory(directory.path / EVALUATED)
            self.best = BestWeights(folder, job.topology.blocks, plan.start, directory.validation_scores())
        self._patience: Patience | None = None
        if config.train.patience:
            scores = directory.validation_scores() if directory is not None else {}
            self._patience = Patience(config.train.patience, scores, comm)
        self._committer: CheckpointCommitter | None = None
        if directory is not None:
            self._committer = CheckpointCommitter(
                CheckpointDirectory(directory.path / CHECKPOINTS),
                ManifestHeader(identity(job, config), list(job.cut), provenance.versions(job.device)),
                config.checkpoint.keep,
                plan.batches,
                plan.start,
                comm.announce_checkpoint,
                replicas=job.topology.replicas,
            )

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
            if self.best is not None:
                self.best.remove()

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
        if item.evaluated:
            assert self.best is not None, "blocks write no weights unasked"
            self.best.add_written(item)
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
        if row.event == "validation" and (score := row.score) is not None:
            for judge in (self.best, self._patience):
                if judge is not None:
                    judge.add_score(row.n + 1, score)
        notify(self._callbacks, "on_step" if row.event == "train" else "on_eval", row)
