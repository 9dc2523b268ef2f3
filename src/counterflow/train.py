"""A whole run as one rank sees it: the engine, what it reports, and the summary at the end."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from counterflow.engine.cost import Cost
from counterflow.engine.job import Job
from counterflow.engine.outcome import Outcome
from counterflow.engine.station import Waits
from counterflow.engine.system import build, cut
from counterflow.metrics import provenance
from counterflow.metrics.collector import Collector
from counterflow.metrics.display import Display
from counterflow.metrics.files import RunDirectory
from counterflow.metrics.fingerprint import fingerprint
from counterflow.metrics.record import Record, Row
from counterflow.metrics.reporter import Reporter
from counterflow.transport import World


def train(job: Job, world: World, directory: RunDirectory | None) -> dict[str, Any] | None:
    """Run ``job``; returns the summary on rank 0, which alone has a ``directory``, and None elsewhere."""
    config, plan = job.config, job.plan
    counts = cut(job, world)
    system = build(job, counts)
    waits = Waits()

    def post(i: int, record: Record) -> None:
        world.post(f"{world.rank}/{i}", record.to_json())

    def fetch(rank: int, i: int) -> Record | None:
        text = world.collect(f"{rank}/{i}")
        return None if text is None else Record.from_json(text)

    reporter = Reporter(world.rank, config.train.log_every, plan.batches, lambda: waits.receive, post)
    if directory is None:
        outcome = system.run(world, reporter, waits)
        world.gather((outcome, reporter.posted), "outcomes")
        world.gather(None, "the end")  # rank 0 may still read from a store that ends with this process
        return None

    console = Console(quiet=not config.run.display)
    console.print(_setting(job, counts), soft_wrap=True)
    evaluations: dict[str, Row] = {}
    with ExitStack() as stack:
        stack.enter_context(directory)
        display = stack.enter_context(Display(console, plan.batches, config.train.batch_size, system.owners))

        def sink(row: Row) -> None:
            directory.write(row)
            display.show(row)
            if row.event != "train":
                evaluations[row.event] = row

        collector = Collector(world.size, job.topology.blocks, fetch, system.objective, sink)
        outcome = system.run(world, reporter, waits)
        outcomes = world.gather((outcome, reporter.posted), "outcomes")
        collector.finish([posted for _, posted in outcomes], world.watch.timeout)
        summary = _summary(job, counts, [outcome for outcome, _ in outcomes], evaluations)
        if config.run.activations:
            _save_activations(directory.path, job, [outcome for outcome, _ in outcomes])
        directory.summarise(summary)
    world.gather(None, "the end")
    console.print(display.table())
    console.print(
        f"{_accuracies(summary)}  {summary['samples_per_second']:,.0f} samples/s  "
        f"fingerprint {summary['fingerprint'][:16]}  {directory.path / 'summary.json'}",
        soft_wrap=True,
    )
    return summary


def _setting(job: Job, counts: Sequence[int]) -> str:
    config = job.config
    return (
        f"{config.algorithm.name}, {config.model.name} of {len(job.network)} layers cut {list(counts)} into "
        f"{config.blocks} blocks\n"
        f"processes {job.topology.ranks}, threads of each {torch.get_num_threads()} (engine.threads="
        f"{config.engine.threads}), lag {config.engine.lag}, {job.device.type} over {job.backend}\n"
        f"{config.data.name}, {job.plan.batches} batches of {config.train.batch_size}"
    )


def _accuracies(summary: Mapping[str, Any]) -> str:
    named = ((split, summary[f"{split}_accuracy"]) for split in ("validation", "test"))
    return "  ".join(f"{split} accuracy {accuracy:.4f}" for split, accuracy in named if accuracy is not None)


def _summary(
    job: Job, counts: Sequence[int], outcomes: Sequence[Outcome], evaluations: Mapping[str, Row]
) -> dict[str, Any]:
    config = job.config
    figures = {
        (split, name): row.column(name)
        for split, row in evaluations.items()
        for name in ("accuracy", *(["sequence_accuracy"] if job.task.label_shape else []))
    }
    digests = {block: digest for outcome in outcomes for block, digest in outcome.digests.items()}
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
        "samples_per_second": min(o.batches * config.train.batch_size / o.seconds for o in outcomes),
        "wait_fraction": [o.receive_wait / o.seconds for o in outcomes],
        "send_wait_fraction": [o.send_wait / o.seconds for o in outcomes],
        "seconds": max(row.seconds for row in evaluations.values()),
        "fingerprint": fingerprint(digests[block] for block in sorted(digests)),
        "effective_parameters": sum(o.effective_parameters for o in outcomes),
        "affiliated_parameters": sum(o.affiliated_parameters for o in outcomes),
        "flops": _flops(outcomes),
        "schedule": job.schedule,
        "lag": config.engine.lag,
        "cut": list(counts),
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


def _flops(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Per sample: of the network forward, of training it by backprop, and what learning here takes beyond that."""
    cost = sum((outcome.cost for outcome in outcomes), Cost(0, 0, 0))
    return {"network": cost.forward, "training": cost.backprop, "extra": cost.learning - cost.backprop}


def _save_activations(folder: Path, job: Job, outcomes: Sequence[Outcome]) -> None:
    """``block_1`` .. ``block_N``, ``[M, d]``, bottom to top, and ``labels``."""
    arrays: dict[str, Any] = {"labels": job.batches.labels_of(job.batches.test)[: job.config.run.activations].numpy()}
    for outcome in outcomes:
        arrays |= {f"block_{block}": values.numpy() for block, values in outcome.activations.items()}
    np.savez(folder / "activations.npz", **arrays)
