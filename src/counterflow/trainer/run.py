"""A whole run as one rank sees it: the engine, what it reports, and the summary at the end."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from counterflow.checkpoint import BlockWritten, CheckpointDirectory, CheckpointWriter
from counterflow.engine.cost import Flops
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job
from counterflow.engine.rank_result import RankResult
from counterflow.engine.run_context import PreemptedError, RunContext
from counterflow.engine.stage import WaitTimes
from counterflow.metrics import provenance
from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics
from counterflow.metrics.fingerprint import fingerprint
from counterflow.metrics.metrics_callback import MetricsCallback
from counterflow.trace.session import TraceSession
from counterflow.trainer.rank0 import Rank0Services, warn
from counterflow.trainer.resume import CHECKPOINTS, ResumePoint
from counterflow.transport import Communicator


@dataclass(frozen=True)
class _Beginning:
    """Where all ranks begin, as the first one of them found it."""

    cut: list[int]
    path: Path
    checkpoint: Path | None
    batches: int
    seconds: float


def train(job: Job, comm: Communicator, origin: ResumePoint | None) -> dict[str, Any] | None:
    """Run ``job``; returns the summary on rank 0, which alone has an ``origin``, and None elsewhere.

    Without an ``origin`` there is nothing left to do.

    Raises `PreemptedError` on all ranks where a signal ended the run early, once its checkpoint is whole.
    """
    mine = _beginning(job, origin) if origin is not None else None
    begin = comm.all_gather(mine, "where to begin")[0]
    if begin is None or comm.run_is_over:
        comm.all_gather(None, "the end")
        return None
    assert isinstance(begin, _Beginning)
    if comm.restart_count and origin is None:
        begin = _newest(begin, job)
    job = replace(job, plan=replace(job.plan, start=begin.batches))
    config, plan = job.config, job.plan
    system = build_engine(job, begin.cut)
    waits = WaitTimes()

    def report(item: BlockMetrics | BlockWritten) -> None:
        comm.send_report(item.to_json())

    reporter = MetricsCallback(
        comm.rank, config.train.log_every, plan.batches, lambda: waits.receive, report, before=begin.seconds
    )
    shelf = CheckpointDirectory(begin.path / CHECKPOINTS)
    archive = CheckpointWriter(shelf, begin.checkpoint, job.device, report, comm.watchdog.timeout)
    tracing = TraceSession(comm, begin.path, warn) if config.trace else None
    context = RunContext(comm, reporter, waits, archive, tracing.recorder if tracing is not None else None)
    console = Console(quiet=not config.run.display)
    with ExitStack() as stack:
        stack.enter_context(archive)
        desk = None
        if origin is not None:
            console.print(_setting(job, begin.cut), soft_wrap=True)
            desk = Rank0Services(job, origin, shelf, begin.cut, system.owners, system.summarize, comm, console)
            stack.enter_context(desk)
        try:
            result = system.run(context)
        except PreemptedError:
            posted = comm.all_gather(comm.reports_sent, "the last checkpoint")
            if desk is not None:
                desk.finish(posted)
            if tracing is not None:
                tracing.finish(_title(job))
            comm.all_gather(None, "the end")
            raise
        archive.finish()
        results = comm.all_gather((result, comm.reports_sent), "outcomes")
        summary = None
        if desk is not None:
            desk.finish([posted for _, posted in results])
            summary = _summary(job, begin, [result for result, _ in results], desk.evaluations)
            if config.run.activations:
                _save_activations(begin.path, job, [result for result, _ in results])
            desk.summarise(summary)
    if tracing is not None:
        tracing.finish(_title(job))
    comm.all_gather(None, "the end")  # rank 0 may still read from a store that ends with another process
    if origin is not None and desk is not None and summary is not None:
        console.print(desk.table())
        console.print(
            f"{_accuracies(summary)}  {summary['samples_per_second']:,.0f} samples/s  "
            f"fingerprint {summary['fingerprint'][:16]}  {origin.directory.path / 'summary.json'}",
            soft_wrap=True,
        )
    return summary


def _newest(begin: _Beginning, job: Job) -> _Beginning:
    """What a rank begins with that takes the place of one that ``begin`` was meant for."""
    found = CheckpointDirectory(begin.path / CHECKPOINTS).latest(job.plan.batches, lambda text: None)
    return begin if found is None else replace(begin, checkpoint=found[0], batches=found[1].batches)


def _beginning(job: Job, origin: ResumePoint) -> _Beginning:
    return _Beginning(
        origin.cut or choose_partition(job),
        origin.directory.path.resolve(),
        origin.checkpoint.resolve() if origin.checkpoint is not None else None,
        origin.batches,
        origin.directory.seconds,
    )


def _setting(job: Job, counts: Sequence[int]) -> str:
    config = job.config
    return (
        f"{config.algorithm.name}, {config.model.name} of {len(job.network)} layers cut {list(counts)} into "
        f"{config.blocks} blocks\n"
        f"processes {job.topology.ranks}, threads of each {torch.get_num_threads()} (engine.threads="
        f"{config.engine.threads}), lag {config.engine.lag}, {job.device.type} over {job.backend}\n"
        f"{config.data.name}, {job.plan.batches} batches of {config.train.batch_size}"
    )


def _title(job: Job) -> str:
    config = job.config
    return f"{config.algorithm.name}, schedule {job.schedule}, {config.model.name} on {config.data.name}"


def _accuracies(summary: Mapping[str, Any]) -> str:
    named = ((split, summary[f"{split}_accuracy"]) for split in ("validation", "test"))
    return "  ".join(f"{split} accuracy {accuracy:.4f}" for split, accuracy in named if accuracy is not None)


def _summary(
    job: Job, begin: _Beginning, results: Sequence[RankResult], evaluations: Mapping[str, StepMetrics]
) -> dict[str, Any]:
    config = job.config
    figures = {
        (split, name): row.column(name)
        for split, row in evaluations.items()
        for name in ("accuracy", *(["sequence_accuracy"] if job.task.label_shape else []))
    }
    digests = {block: digest for result in results for block, digest in result.digests.items()}
    return {
        "algorithm": config.algorithm.name,
        "model": config.model.name,
        "data": config.data.name,
        "blocks": config.blocks,
        "ranks": job.topology.ranks,
        "seed": config.seed,
        "steps": job.plan.batches,
        "test_accuracy": _top(figures.get(("test", "accuracy"))),
        "block_accuracy": figures.get(("test", "accuracy")),
        "validation_accuracy": _top(figures.get(("validation", "accuracy"))),
        "validation_block_accuracy": figures.get(("validation", "accuracy")),
        "test_sequence_accuracy": _top(figures.get(("test", "sequence_accuracy"))),
        "block_sequence_accuracy": figures.get(("test", "sequence_accuracy")),
        "samples_per_second": min(o.batches * config.train.batch_size / o.seconds for o in results),
        "wait_fraction": [o.receive_wait / o.seconds for o in results],
        "send_wait_fraction": [o.send_wait / o.seconds for o in results],
        "resumed_after": begin.batches or None,
        "seconds": max(row.seconds for row in evaluations.values()),
        "fingerprint": fingerprint(digests[block] for block in sorted(digests)),
        "effective_parameters": sum(o.effective_parameters for o in results),
        "affiliated_parameters": sum(o.affiliated_parameters for o in results),
        "flops": _flops(results),
        "schedule": job.schedule,
        "lag": config.engine.lag,
        "cut": begin.cut,
        "threads": torch.get_num_threads(),
        "device": job.device.type,
        "precision": "bf16" if job.numerics.bf16 else "fp32",
        "backend": job.backend,
        "experiment": config.run.experiment,
        "scale": config.scale,
        "config_hash": provenance.config_hash(config),
        "group_hash": provenance.group_hash(config),
        "hardware": provenance.hardware(job.device),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "torchvision_version": provenance.torchvision_version(),
        "git_commit": provenance.git_commit(),
    }


def _top(blocks: Sequence[float | None] | None) -> float | None:
    return None if blocks is None else blocks[-1]


def _flops(results: Sequence[RankResult]) -> dict[str, float]:
    """Per sample: of the network forward, of training it by backprop, and what learning here takes beyond that."""
    cost = sum((result.cost for result in results), Flops(0, 0, 0))
    return {"network": cost.forward, "training": cost.backprop, "extra": cost.learning - cost.backprop}


def _save_activations(folder: Path, job: Job, results: Sequence[RankResult]) -> None:
    """``block_1`` .. ``block_N``, ``[M, d]``, bottom to top, and ``labels``."""
    arrays: dict[str, Any] = {"labels": job.batches.labels_of(job.batches.test)[: job.config.run.activations].numpy()}
    for result in results:
        arrays |= {f"block_{block}": values.numpy() for block, values in result.activations.items()}
    np.savez(folder / "activations.npz", **arrays)
