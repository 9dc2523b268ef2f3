"""Jobs on several nodes: torchrun's agent on each of them, with one rank."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.elastic import Elastic, Place
from tests.helpers.kills import JOB
from tests.helpers.nodes import Node

LONG = (*JOB, "train.steps=100000", "train.epochs=10000", "train.evaluate_every=0", "checkpoint.best=false")
"""A job that goes on until something ends it."""


@contextmanager
def running(
    nodes: Sequence[Node], folder: Path, *overrides: str, restarts: int = 0, **environment: str
) -> Iterator[list[Elastic]]:
    """Start ``launch/train.py`` on ``nodes``; kill what still runs in the end.

    Args:
        nodes: The nodes; the agent of the first hosts the meeting point.
        folder: Takes a log of every node.
        overrides: Of the configuration.
        restarts: How often the agents start all ranks again.
        environment: Variables of the agents.
    """
    folder.mkdir(exist_ok=True)
    jobs = [start(node, nodes, folder, *overrides, restarts=restarts, **environment) for node in nodes]
    try:
        yield jobs
    finally:
        for job in jobs:
            job.kill_all()


def start(
    node: Node, nodes: Sequence[Node], folder: Path, *overrides: str, restarts: int = 0, **environment: str
) -> Elastic:
    """Start the agent of one of ``nodes``; see `running`."""
    place = Place(node, nodes[0], len(nodes), environment)
    return Elastic.start(1, folder / node.name, *overrides, restarts=restarts, place=place)


def wait(jobs: Sequence[Elastic], seconds: float) -> None:
    """Wait until the agents have ended with success, ``seconds`` at most."""
    end = time.monotonic() + seconds
    for job in jobs:
        assert job.wait(max(0.0, end - time.monotonic())) == 0, job.output() + job.summary()


def seconds_to_the_end_of(jobs: Sequence[Elastic], limit: float) -> float:
    """Wait until no job has ranks, whether their agents have noticed or not; the seconds that it took."""
    start = time.monotonic()
    while any(job.workers() for job in jobs):
        seconds = time.monotonic() - start
        assert seconds < limit, [job.output() for job in jobs]
        time.sleep(0.05)
    return time.monotonic() - start


def error(job: Elastic) -> str:
    """The line with which its rank ended."""
    lines = [line for line in job.output().splitlines() if line.startswith("error:")]
    assert lines, job.output() + job.summary()
    return lines[-1]
