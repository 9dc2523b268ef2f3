"""Worker processes of one measurement: one per rank, forked from a server that has imported everything."""

import ctypes
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch._C._distributed_c10d import TCPStore

from counterflow.bench import netem
from counterflow.bench.netem import JoinHandle
from counterflow.transport import Communicator, connect

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["counterflow.bench.whole_run", "counterflow.engine.pipelined", "sklearn.datasets"])

_PR_SET_TIMERSLACK = 29
"""Linux's prctl option: with a slack of 1 ns, sleeps end within a microsecond instead of 50."""

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class WorkerError(Exception):
    """A failed measurement; the text has the error of every rank that failed."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings shared by all processes of a measurement."""

    timeout: float
    """Seconds for the whole measurement."""
    pinned: bool = False
    """Pin each process to a core of its own, if there are enough cores."""
    network: JoinHandle | None = None
    """The emulated network in whose namespaces the processes run; None for the loopback of this machine."""


def run_workers(
    settings: WorkerSettings,
    ranks: int,
    task: Callable[[Communicator, *Arguments], Result],
    *args: *Arguments,
) -> list[Result]:
    """Run ``task(comm, *args)`` in ``ranks`` processes.

    Returns:
        What each rank returned, in rank order.

    Raises:
        WorkerError: A rank failed, or the time is over.
    """
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = _context.Pipe()
        process = _context.Process(
            target=_run_rank, args=(theirs, settings, rank, ranks, task, args), name=f"rank {rank}", daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _collect_results(pipes, time.monotonic() + settings.timeout)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _collect_results(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    ended: dict[int, tuple[str, Any]] = {}
    while pending := [pipe for rank, pipe in enumerate(pipes) if rank not in ended]:
        ready = wait(pending, max(0.0, deadline - time.monotonic()))
        if not ready:
            ended |= {pipes.index(pipe): ("failed", "has not finished in time") for pipe in pending}
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                kind, value = pipe.recv()
            except EOFError:
                kind, value = "failed", "ended without an error message"
            if kind == "port":
                for other in pipes[1:]:
                    other.send(value)
                continue
            ended[pipes.index(pipe)] = kind, value
            if kind == "failed":
                deadline = min(deadline, time.monotonic() + 5.0)  # failures of the other ranks follow from this one
    if failures := [f"rank {rank}: {value}" for rank, (kind, value) in sorted(ended.items()) if kind == "failed"]:
        raise WorkerError("\n".join(failures))
    return [ended[rank][1] for rank in range(len(pipes))]


def _run_rank(
    pipe: Connection,
    settings: WorkerSettings,
    rank: int,
    ranks: int,
    task: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    """The process of one rank: sends ``("done", result)`` or ``("failed", traceback)``, then ends without cleanup."""
    try:
        comm = _connect(pipe, settings, rank, ranks)
        value = task(comm, *args)
        comm.all_gather(None, "the end")
        pipe.send(("done", value))
        pipe.close()
    except BaseException:
        with suppress(OSError):  # the parent may be gone
            pipe.send(("failed", traceback.format_exc()))
    os._exit(0)  # does not wait for threads of channels and sockets


def _connect(pipe: Connection, settings: WorkerSettings, rank: int, ranks: int) -> Communicator:
    """Apply ``settings`` to this process and connect it; rank 0 reports the port of its store over ``pipe``."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    if settings.pinned and ranks <= len(cores):
        os.sched_setaffinity(0, {cores[rank]})
    os.environ["GLOO_SOCKET_IFNAME"], host = "lo", "127.0.0.1"
    if settings.network is not None:
        netem.join(settings.network, rank)
        os.environ["GLOO_SOCKET_IFNAME"], host = netem.INTERFACE, netem.ip_address(0)
    port = pipe.recv() if rank else 0
    store = TCPStore(host, port, ranks, is_master=rank == 0, wait_for_workers=False)
    if rank == 0:
        pipe.send(("port", store.port))
    return connect(store, rank, ranks, timeout=settings.timeout)
