"""A whole run as one rank sees it: the engine, what it reports, and the summary at the end."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console

from counterflow.engine.job import Job
from counterflow.engine.outcome import Outcome
from counterflow.engine.station import Waits
from counterflow.engine.system import build, cut
from counterflow.metrics.collector import Collector
from counterflow.metrics.display import Display
from counterflow.metrics.files import RunDirectory, git_commit
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
    accuracies = {split: row.column("accuracy") for split, row in evaluations.items()}
    digests = {block: digest for outcome in outcomes for block, digest in outcome.digests.items()}
    return {
        "algorithm": config.algorithm.name,
        "model": config.model.name,
        "data": config.data.name,
        "blocks": config.blocks,
        "ranks": job.topology.ranks,
        "seed": config.seed,
        "steps": job.plan.batches,
        "test_accuracy": accuracies["test"][-1] if "test" in accuracies else None,
        "block_accuracy": accuracies.get("test"),
        "validation_accuracy": accuracies["validation"][-1] if "validation" in accuracies else None,
        "validation_block_accuracy": accuracies.get("validation"),
        "samples_per_second": min(o.batches * config.train.batch_size / o.seconds for o in outcomes),
        "wait_fraction": [o.receive_wait / o.seconds for o in outcomes],
        "send_wait_fraction": [o.send_wait / o.seconds for o in outcomes],
        "seconds": max(row.seconds for row in evaluations.values()),
        "fingerprint": fingerprint(digests[block] for block in sorted(digests)),
        "effective_parameters": sum(o.effective_parameters for o in outcomes),
        "affiliated_parameters": sum(o.affiliated_parameters for o in outcomes),
        "schedule": job.schedule,
        "lag": config.engine.lag,
        "cut": list(counts),
        "threads": torch.get_num_threads(),
        "device": job.device.type,
        "backend": job.backend,
        "torch_version": str(torch.__version__),
        "git_commit": git_commit(),
    }
