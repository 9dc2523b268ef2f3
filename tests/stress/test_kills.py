"""Kill anything at any moment: the final parameters are the bits of an unbroken run."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.elastic import Elastic

JOB = (
    "blocks=4", "model.width=16", "model.hidden=6", "model.norm=batch", "model.dropout=0.1", "train.batch_size=32",
    "train.steps=240", "train.evaluate_every=60", "checkpoint.every=10", "engine.threads=1", "engine.timeout=60",
    "run.display=false",
)  # fmt: skip
RANKS = 4
TIMES = int(os.environ.get("COUNTERFLOW_KILLS", "200"))
LIMIT = 120.0
"""Seconds for a job; a quiet machine needs two."""


def fingerprint(run: Path) -> str:
    text = json.loads((run / "summary.json").read_text())["fingerprint"]
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Fingerprint of an unbroken run, and its seconds."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name in ("warm", "run"):
        start = time.monotonic()
        job = Elastic.start(RANKS, folder / f"{name}.log", *JOB, f"run.dir={folder / name}")
        assert job.wait(LIMIT) == 0, job.output()
    return fingerprint(folder / "run"), time.monotonic() - start


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
    end = time.monotonic() + LIMIT
    while len(job.workers()) < RANKS:
        assert time.monotonic() < end, job.output()
        time.sleep(0.005)
    time.sleep(draw.random() * 0.9 * seconds)
    workers = job.workers()
    if workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    when = phase(run) if workers else "after the end"
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


@pytest.mark.parametrize("kill", [kill_one, pytest.param(kill_all, marks=pytest.mark.slow)])
def test_killed_and_restarted_the_bits_are_the_same(kill, unbroken: tuple[str, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill(folder, random.Random(seed), unbroken)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kill", "times"), [(kill_one, TIMES), (kill_all, TIMES // 2)])
def test_killed_many_times(kill, times: int, unbroken: tuple[str, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = int(os.environ.get("COUNTERFLOW_SEED", "0"))
    phases: Counter[str] = Counter()
    start = time.monotonic()
    for seed in itertools.count(first):
        folder = tmp_path / str(seed)
        folder.mkdir()
        phases[kill(folder, random.Random(seed), unbroken)] += 1
        shutil.rmtree(folder)
        killed = phases.total() - phases["after the end"]
        print(f"{killed} of {times}, {time.monotonic() - start:.0f} s: {dict(phases)}", flush=True)
        if killed == times:
            break
    assert phases["during a checkpoint"] > 0
