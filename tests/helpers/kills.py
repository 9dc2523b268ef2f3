"""Kills of real jobs at random moments, and the bits of an unbroken run."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from counterflow.checksum import sha256
from tests.helpers.elastic import Elastic, children

JOB = (
    "blocks=4", "model.width=16", "model.hidden=6", "model.norm=batch", "model.dropout=0.1", "train.batch_size=32",
    "train.steps=160", "train.evaluate_every=40", "checkpoint.every=10", "engine.threads=1", "engine.timeout=60",
    "optimizer.average=0.9", "checkpoint.best=true", "run.display=false",
)  # fmt: skip
RANKS = 4
RECOVER = (*JOB, "engine.recovery=rank")
LIMIT = 120.0
"""Seconds for a job; a quiet machine needs two."""


def fingerprint(run: Path) -> str:
    """Fingerprint of the last weights and, if they were kept, of the best ones."""
    text = json.loads((run / "summary.json").read_text())["fingerprint"]
    assert isinstance(text, str)
    best = run / "best.safetensors"
    return f"{text} {sha256(best)}" if best.exists() else text


def unbroken_run(folder: Path, name: str, *options: str, ranks: int = RANKS) -> tuple[str, float]:
    """Fingerprint of a job that nothing disturbs, and its seconds."""
    start = time.monotonic()
    job = Elastic.start(ranks, folder / f"{name}.log", *options, f"run.dir={folder / name}")
    assert job.wait(LIMIT) == 0, job.output()
    return fingerprint(folder / name), time.monotonic() - start


def until(true: Callable[[], object], job: Elastic, seconds: float = LIMIT) -> None:
    """Wait until ``true()``, which a moment later may not be any more. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {job.output()}"
        time.sleep(0.002)


def until_checkpoint(job: Elastic, run: Path, batches: int | None = None) -> None:
    """Wait for a complete checkpoint of ``run``, or for the one after ``batches``."""
    name = "*" if batches is None else f"batch-{batches:08}"
    until(lambda: list(run.glob(f"checkpoints/{name}/manifest.json")), job)


def phase(run: Path) -> str:
    """Phase of ``run`` in which it was killed."""
    folders = list((run / "checkpoints").glob("*")) if (run / "checkpoints").exists() else []
    if not folders:
        return "before the first checkpoint"
    return "while training" if all((f / "manifest.json").exists() for f in folders) else "during a checkpoint"


def kill_one(folder: Path, draw: random.Random, unbroken: tuple[str, float]) -> str:
    """Kill a random rank at a random moment; torchrun's agent restarts all. Returns the phase."""
    expected, seconds = unbroken
    run = folder / "run"
    job = Elastic.start(RANKS, folder / "log", *JOB, f"run.dir={run}", restarts=3)
    until(lambda: len(job.workers()) >= RANKS, job)
    time.sleep(draw.random() * 0.9 * seconds)
    workers = job.workers()
    killed = bool(workers) and job.kill(draw.choice(workers))
    when = phase(run) if killed else "after the end"
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == expected, job.output()
    return when


def kill_all(folder: Path, draw: random.Random, unbroken: tuple[str, float]) -> str:
    """Kill the agent and all ranks at a random moment, and go on by hand with another number of processes."""
    expected, seconds = unbroken
    run = folder / "run"
    job = Elastic.start(RANKS, folder / "log", *JOB, f"run.dir={run}")
    time.sleep(draw.random() * seconds)
    job.kill_all()
    if (run / "summary.json").exists():
        assert fingerprint(run) == expected
        return "after the end"
    when = phase(run)
    again = Elastic.start(draw.choice([1, 2, 3]), folder / "again", *JOB, f"run.dir={run}")
    assert again.wait(LIMIT) == 0, again.output()
    assert fingerprint(run) == expected, again.output()
    return when


def ranks(job: Elastic) -> list[int]:
    """Processes of the ranks, children of their supervisors."""
    return [child for supervisor in job.workers() for child in children(supervisor)]


def kill_and_wait(
    folder: Path, options: tuple[str, ...], draw: random.Random, expected: str, times: int = 1
) -> tuple[float, str]:
    """Kill random ranks, one after the other, at random moments once there is a checkpoint.

    Args:
        folder: Folder of the job.
        options: Of the job; ``engine.recovery=rank`` has processes killed whose supervisors replace them.
        draw: Source of the moments and ranks.
        expected: Fingerprint with which it must end.
        times: Number of kills.

    Returns:
        Seconds from the first checkpoint to the end, and what the job printed.
    """
    run = folder / "run"
    supervised = "engine.recovery=rank" in options
    job = Elastic.start(RANKS, folder / "log", *options, f"run.dir={run}", restarts=1)
    until_checkpoint(job, run)
    start = time.monotonic()
    for _ in range(times):
        time.sleep(draw.random() * 0.5)
        victims = ranks(job) if supervised else job.workers()
        if victims:
            job.kill(draw.choice(victims))
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == expected, job.output()
    return time.monotonic() - start, job.output()
