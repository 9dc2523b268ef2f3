"""The processes of one measurement: forked from a server that has imported everything, one a rank, gone at its end."""

import ctypes
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch._C._distributed_c10d import TCPStore

from counterflow.bench import network
from counterflow.bench.network import Door
from counterflow.transport import Communicator, connect

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["counterflow.bench.contender", "counterflow.engine.pipelined", "sklearn.datasets"])

_TIMER_SLACK = 29
"""Linux's prctl(PR_SET_TIMERSLACK): sleeps end within a microsecond, not 50."""

P = ParamSpec("P")
Result = TypeVar("Result")


class CrewError(Exception):
    """A measurement that did not end well; the text has what every rank said."""


@dataclass(frozen=True)
class Setting:
    """What all processes of a crew share."""

    timeout: float
    """Seconds for the whole measurement."""
    threads: int = 1
    """Intra-op threads of each process."""
    pinned: bool = False
    """Whether each process keeps to a core of its own, where there are enough."""
    door: Door | None = None
    """The emulated network whose namespaces the processes live in; None is this machine's loopback."""


def run(
    setting: Setting,
    ranks: int,
    task: Callable[Concatenate[Communicator, P], Result],
    *args: P.args,
    **kwargs: P.kwargs,
) -> list[Result]:
    """``task(comm, *args)`` in ``ranks`` processes; what each returned, in rank order. Raises `CrewError`."""
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = _context.Pipe()
        process = _context.Process(
            target=_serve, args=(theirs, setting, rank, ranks, task, args, kwargs), name=f"rank {rank}", daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _collect(pipes, time.monotonic() + setting.timeout)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _collect(pipes: Sequence[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    while len(results) + len(failures) < len(pipes):
        open_ = [pipe for rank, pipe in enumerate(pipes) if rank not in results and rank not in failures]
        ready = wait(open_, max(0.0, deadline - time.monotonic()))
        if not ready:
            failures |= {rank: "has not finished in time" for rank, pipe in enumerate(pipes) if pipe in open_}
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                kind, value = pipe.recv()
            except EOFError:
                kind, value = "failed", "ended without a word"
            if kind == "port":
                for other in pipes[1:]:
                    other.send(value)
            elif kind == "failed":
                failures[rank] = value
                deadline = min(deadline, time.monotonic() + 5.0)  # what the others say follows from it
            else:
                results[rank] = value
    if failures:
        raise CrewError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(failures.items())))
    return [results[rank] for rank in range(len(pipes))]


def _serve(
    pipe: Connection,
    setting: Setting,
    rank: int,
    ranks: int,
    task: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> None:
    try:
        comm = _join(pipe, setting, rank, ranks)
        value = task(comm, *args, **kwargs)
        comm.all_gather(None, "the end")
        pipe.send(("done", value))
        pipe.close()
    except BaseException:
        with suppress(OSError):  # who asked may be gone
            pipe.send(("failed", traceback.format_exc()))
    os._exit(0)  # waiting threads of channels and sockets need no good-bye


def _join(pipe: Connection, setting: Setting, rank: int, ranks: int) -> Communicator:
    ctypes.CDLL(None).prctl(_TIMER_SLACK, 1, 0, 0, 0)
    torch.set_num_threads(setting.threads)
    cores = sorted(os.sched_getaffinity(0))
    if setting.pinned and ranks <= len(cores):
        os.sched_setaffinity(0, {cores[rank]})
    interface, address = "lo", "127.0.0.1"
    if setting.door is not None:
        place = network.enter(setting.door, rank)
        interface, address = place.interface, place.address
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    if ranks == 1:
        return connect(None, 0, 1, timeout=setting.timeout)
    host = address if setting.door is None else network.address(0)
    if rank == 0:
        store = TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False)
        pipe.send(("port", store.port))
    else:
        store = TCPStore(host, pipe.recv(), ranks, is_master=False)
    return connect(store, rank, ranks, timeout=setting.timeout)
