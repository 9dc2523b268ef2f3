"""Processes of tests: a pool that stays, for runs that succeed, and fresh ones, for programs and for failures.

All are forked from one server that has imported torch once, which takes two seconds of a core.
"""

import multiprocessing
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import counterflow.bench.workers  # noqa: F401

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PROGRAM = str(ROOT / "launch" / "train.py")

context = multiprocessing.get_context("forkserver")
# A process has one such server. The benchmark's workers name modules for it too, when they are imported, so they come
# first: with theirs alone, every rank would import and parse what `preloaded` has.
context.set_forkserver_preload(["tests.helpers.preloaded"])


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
        with TemporaryDirectory(prefix="counterflow-store-") as folder:
            return self._run(ranks, task, str(Path(folder) / "store"), args, timeout)

    def _run(
        self, ranks: int, task: Callable[..., Any], store_path: str, args: tuple[Any, ...], timeout: float
    ) -> list[Any]:
        while len(self._workers) < ranks:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(len(self._workers), theirs), daemon=True)
            process.start()
            self._workers.append((process, ours))
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
    """The end of one process of a run."""

    status: int
    seconds: float
    """After the start of the run."""
    stdout: str
    stderr: str


class Fresh:
    """Processes of their own, one a rank, that run ``task(rank, ranks, store_path, *args)``.

    Their output goes to files in the folder of ``store_path``. Leaving the context kills those that still run, and
    removes the folder.
    """

    def __init__(self, ranks: int, task: Callable[..., Any], *args: Any) -> None:
        self.folder = Path(mkdtemp(prefix="counterflow-fresh-"))
        self.started = time.monotonic()
        self._processes = [
            context.Process(
                target=_redirected, args=(task, str(self.folder), (rank, ranks, str(self.folder / "store"), *args))
            )
            for rank in range(ranks)
        ]
        self._seconds: dict[int, float] = {}
        for process in self._processes:
            process.start()

    def __enter__(self) -> "Fresh":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    @property
    def statuses(self) -> list[int | None]:
        """Exit status of every process; None while it runs."""
        return [process.exitcode for process in self._processes]

    def running(self) -> list[int]:
        """Ranks that still run."""
        return [rank for rank, status in enumerate(self.statuses) if status is None]

    def poll(self, seconds: float) -> list[int]:
        """Wait until a rank ends, ``seconds`` at most; the ranks that still run."""
        pending = [process for process in self._processes if process.exitcode is None]
        wait([process.sentinel for process in pending], max(0.0, seconds))
        now = time.monotonic() - self.started
        for rank, process in enumerate(self._processes):
            process.join(0)
            if process.exitcode is not None:
                self._seconds.setdefault(rank, now)
        return [rank for rank in range(len(self._processes)) if rank not in self._seconds]

    def wait(self, seconds: float) -> list[Ended]:
        """The end of every rank. Fails if one still runs ``seconds`` after the start."""
        while self.poll(self.started + seconds - time.monotonic()):
            late = time.monotonic() - self.started > seconds
            assert not late, f"ranks {self.running()} still ran after {seconds} s: {self.texts()}"
        return [
            Ended(status or 0, self._seconds[rank], self.text(rank, "out"), self.text(rank, "err"))
            for rank, status in enumerate(self.statuses)
        ]

    def text(self, rank: int, stream: str = "err") -> str:
        """Standard error, or ``out``, of a rank; nothing if it was ended before it began."""
        path = self.folder / f"{stream}{rank}"
        return path.read_text(errors="replace") if path.exists() else ""

    def texts(self) -> list[str]:
        return [self.text(rank) for rank in range(len(self._processes))]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def run_fresh(ranks: int, task: Callable[..., Any], *args: Any, timeout: float) -> list[Ended]:
    """``task(rank, ranks, store_path, *args)`` in fresh processes; how each ended. Fails if one is still there."""
    with Fresh(ranks, task, *args) as run:
        return run.wait(timeout)


def _redirected(task: Callable[..., Any], folder: str, args: Sequence[Any]) -> None:
    os.setsid()  # processes that it leaves behind are found by the session
    redirect(f"{folder}/out{args[0]}", f"{folder}/err{args[0]}")
    task(*args)


def redirect(stdout: str, stderr: str) -> None:
    """Append the output of this process to files."""
    for number, path in ((1, stdout), (2, stderr)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a program of ``launch/`` in this process, as ``python PATH ARGUMENTS`` would."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def run_rank(rank: int, ranks: int, store_path: str, port: int, overrides: Sequence[str], agent: bool = False) -> None:
    """``launch/train.py`` as one of the ranks that meet at ``port``, in the folder ``work`` beside the store.

    Args:
        rank: The rank.
        ranks: Their number; one has no launcher.
        store_path: A file in the folder of the run.
        port: Port of the store, of this machine.
        overrides: Of the configuration.
        agent: The store is that of a launcher's agent. Rank 0 hosts it otherwise.
    """
    work = Path(store_path).parent / "work"
    work.mkdir(exist_ok=True)
    os.chdir(work)
    if ranks > 1:
        os.environ.update(by_hand(rank, ranks, port))
        if agent:
            local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            os.environ.update(local)
    run_script(PROGRAM, overrides)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # does not wait for threads, as the program's own ends do not


def by_hand(rank: int, ranks: int, port: int, **more: str) -> dict[str, str]:
    """Environment of a rank that a user starts without a launcher."""
    return {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | more
