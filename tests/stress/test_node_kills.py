"""Campaign over two nodes: a rank, an agent or a link ends at any moment, and the bits are those of an unbroken run.

Agents that end with an error are started again, as Slurm or Kubernetes does.
"""

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.elastic import Elastic
from tests.helpers.kills import JOB, LIMIT, fingerprint, unbroken_run, until
from tests.helpers.node_jobs import running, start
from tests.helpers.nodes import Node, nodes, unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no namespaces: {unavailable_reason()}")

TIMES = int(os.environ.get("COUNTERFLOW_KILLS", "100"))
FIRST = int(os.environ.get("COUNTERFLOW_SEED", "0"))
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""With which an agent that comes later can join."""


@pytest.mark.timeout(4 * 3600)
def test_two_nodes_killed_many_times(tmp_path: Path) -> None:
    expected, seconds = unbroken_run(tmp_path, "unbroken", *JOB)
    kinds: Counter[str] = Counter()
    begun = time.monotonic()
    for seed in range(FIRST, FIRST + TIMES):
        folder = tmp_path / str(seed)
        draw = random.Random(seed)
        with nodes(2) as both:
            kinds[_kill(both, folder, draw, seconds)] += 1
        assert fingerprint(folder / "run") == expected, f"COUNTERFLOW_SEED={seed}"
        shutil.rmtree(folder)
        print(f"{kinds.total()} of {TIMES}, {time.monotonic() - begun:.0f} s: {dict(kinds)}", flush=True)


def _kill(both: list[Node], folder: Path, draw: random.Random, seconds: float) -> str:
    """Start a job, end one thing at a random moment, and bring it to its end; the kind of that thing."""
    kind, victim = draw.choice(["rank", "agent", "link"]), draw.randrange(2)
    options = (*JOB, f"run.dir={folder / 'run'}")
    with running(both, folder, *options, restarts=3, **OWN_STORE) as jobs:
        until(lambda: all(job.workers() for job in jobs), jobs[0])
        time.sleep(draw.random() * seconds)
        before = [set(job.workers()) for job in jobs]
        if kind == "rank":
            for pid in before[victim]:
                jobs[victim].kill(pid)
        elif kind == "agent":
            jobs[victim].kill_all()
        else:
            both[victim].unplug()
            until(lambda: not any(old & set(job.workers()) for old, job in zip(before, jobs, strict=True)), jobs[0])
            both[victim].plug()
        _finish(both, folder, options, jobs)
    return kind


def _finish(both: list[Node], folder: Path, options: tuple[str, ...], jobs: list[Elastic]) -> None:
    """Start agents again that ended with an error, until the run has finished."""
    end = time.monotonic() + 4 * LIMIT
    while not (folder / "run" / "summary.json").exists():
        assert time.monotonic() < end, [job.output() + job.summary() for job in jobs]
        for number, job in enumerate(jobs):
            if job.process.exitcode:
                jobs[number] = start(both[number], both, folder, *options, restarts=3, **OWN_STORE)
        time.sleep(0.1)
    for job in jobs:
        job.process.join(LIMIT)
