"""Processes for tests: a pool that stays, for runs that succeed, and fresh ones, for runs that are made to fail.

Both are forked from one server that has imported torch once, which takes two seconds of a core.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

CONF = Path(__file__).parents[2] / "conf"

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "counterflow.cli.train",
        "counterflow.engine.pipelined",
        "sklearn.datasets",
        "sklearn.model_selection",
        "torchvision.models",
    ]
)


def _serve(rank: int, inbox: Connection) -> None:
    while True:
        task, size, store_path, args = inbox.recv()
        try:
            inbox.send((True, task(rank, size, store_path, *args)))
        except BaseException:
            inbox.send((False, traceback.format_exc()))


class Pool:
    """Worker processes, one a rank; a run that fails or hangs costs the pool, which is then made anew."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, ranks: int, task: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """``task(rank, ranks, store_path, *args)`` in every process; what each returned, in rank order."""
        while len(self._workers) < ranks:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(len(self._workers), theirs), daemon=True)
            process.start()
            self._workers.append((process, ours))
        store_path = str(Path(mkdtemp(prefix="counterflow-store-")) / "store")
        pipes = [pipe for _, pipe in self._workers[:ranks]]
        for pipe in pipes:
            pipe.send((task, ranks, store_path, args))
        results: dict[Connection, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout
        while len(results) < ranks and time.monotonic() < deadline:
            for pipe in wait([p for p in pipes if p not in results], 1.0):
                assert isinstance(pipe, Connection)
                results[pipe] = pipe.recv()
        failures = [
            f"rank {rank}: {results[pipe][1] if pipe in results else f'still runs after {timeout} s'}"
            for rank, pipe in enumerate(pipes)
            if pipe not in results or not results[pipe][0]
        ]
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return [results[pipe][1] for pipe in pipes]

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
        for process, _ in self._workers:
            process.join()
        self._workers = []


@dataclass(frozen=True)
class Ended:
    """How one process of a run ended."""

    status: int
    seconds: float
    """After the start of the run; 0.1 s is the resolution."""
    stderr: str


def _redirected(task: Callable[..., Any], path: str, args: Sequence[Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    task(*args)


def run_fresh(ranks: int, task: Callable[..., Any], *args: Any, timeout: float) -> list[Ended]:
    """``task(rank, ranks, store_path, *args)`` in fresh processes; how each ended. Fails if one is still there."""
    folder = Path(mkdtemp(prefix="counterflow-fresh-"))
    processes = [
        context.Process(
            target=_redirected, args=(task, str(folder / str(rank)), (rank, ranks, str(folder / "store"), *args))
        )
        for rank in range(ranks)
    ]
    start = time.monotonic()
    for process in processes:
        process.start()
    ends: dict[int, float] = {}
    while len(ends) < ranks and time.monotonic() - start < timeout:
        time.sleep(0.1)
        for rank, process in enumerate(processes):
            if rank not in ends and not process.is_alive():
                ends[rank] = time.monotonic() - start
    for process in processes:
        process.kill()
        process.join()
    texts = [(folder / str(rank)).read_text() for rank in range(ranks)]
    assert len(ends) == ranks, f"ranks {sorted(set(range(ranks)) - set(ends))} still ran after {timeout} s: {texts}"
    return [Ended(process.exitcode or 0, ends[rank], texts[rank]) for rank, process in enumerate(processes)]
