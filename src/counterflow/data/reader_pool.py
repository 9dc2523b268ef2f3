"""Processes that read samples ahead of the batches that need them."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.data.items import Items

_AHEAD = 2
"""Requests of a stream under way for every worker."""
_DEATH = 2.0
"""Seconds until the system says how a process ended."""


class ReaderError(Exception):
    """A reader that ended, or that hangs; the text names the sample that it read."""


class Request(NamedTuple):
    """Samples of one source, to be read."""

    source: str
    rows: NDArray[np.int64]
    epoch: int


@dataclass(frozen=True)
class _Failure:
    text: str


class ReaderPool:
    """Processes forked from this one, which read samples of ``sources`` as long as it lives.

    They inherit whatever this process has open, so they are started before it has sockets and locks. They leave
    SIGTERM and SIGINT to it: a run that ends orderly still needs them.

    A pool of its own and not torch's DataLoader: that one has its workers read one stream of batches, known when it
    starts, through /dev/shm, and notices a dead worker after its timeout, or by an exception on the main thread.
    """

    def __init__(self, number: int, sources: Mapping[str, Items], timeout: float) -> None:
        """Start the processes.

        Args:
            number: Number of processes.
            sources: Source of samples by the name that requests call it.
            timeout: Seconds that a wait for one request may last.
        """
        self._number = number
        self._sources = sources
        self._timeout = timeout
        self._requests = count()
        context = multiprocessing.get_context("fork")
        # Of every worker its process, the request that it reads, and the sample.
        self._progress = context.RawArray("q", 3 * number)
        before = set(multiprocessing.active_children())
        arguments = (sources, self._progress, context.Value("i", 0), os.getpid())
        self._pool = ProcessPoolExecutor(number, context, _begin, arguments)
        self._pool.submit(os.getpid).result(timeout)  # with fork, the first call starts all processes
        self._processes = [process for process in multiprocessing.active_children() if process not in before]

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def read(self, requests: Iterable[Request]) -> Generator[Tensor]:
        """Yield the samples of every request, ``[R, ...]``, in their order, some requests ahead.

        Raises:
            ValueError: A sample cannot be read; the text names it.
            ReaderError: A worker ended, or took longer than the timeout.
        """
        left, pending = iter(requests), deque[tuple[int, Request, Future[Any]]]()
        try:
            while True:
                for request in islice(left, _AHEAD * self._number - len(pending)):
                    number = next(self._requests)
                    pending.append((number, request, self._submit(number, request)))
                if not pending:
                    return
                yield self._result(*pending.popleft())
        finally:
            for _, _, future in pending:
                future.cancel()

    def _submit(self, number: int, request: Request) -> Future[Any]:
        try:
            return self._pool.submit(_read, number, request)
        except BrokenProcessPool:
            self._raise_death()

    def _result(self, number: int, request: Request, future: Future[Any]) -> Tensor:
        try:
            found = future.result(self._timeout)
        except BrokenProcessPool:
            self._raise_death()
        except TimeoutError:
            sample = self._current(lambda pid, reading: reading == number)
            raise ReaderError(
                f"data.workers={self._number}: {sample or 'a sample'} was not read within {self._timeout:g} s"
            ) from None
        if isinstance(found, _Failure):
            raise ValueError(found.text)
        return torch.from_numpy(found)

    def _raise_death(self) -> NoReturn:
        end = time.monotonic() + _DEATH
        while not (dead := [p for p in self._processes if p.exitcode is not None]) and time.monotonic() < end:
            time.sleep(0.01)
        pids = [process.pid for process in dead]
        sample = self._current(lambda pid, reading: pid in pids)
        status = f" (status {dead[0].exitcode})" if dead else ""
        where = f" while it read {sample}" if sample else ""
        raise ReaderError(f"data.workers={self._number}: a worker ended{status}{where}") from None

    def _current(self, wanted: Any) -> str:
        """Name of the sample that the first worker reads of which ``wanted(process, request)`` is true."""
        for slot in range(self._number):
            pid, reading, sample = map(int, self._progress[3 * slot : 3 * slot + 3])
            if reading and wanted(pid, reading - 1):
                source, index = divmod(sample, 1 << 48)
                return list(self._sources.values())[source].name(index)
        return ""

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_DEATH)


class _Worker(NamedTuple):
    sources: Mapping[str, Items]
    progress: Any
    slot: int


_worker: _Worker | None = None


def _begin(sources: Mapping[str, Items], progress: Any, slots: Any, parent: int) -> None:
    global _worker  # the state of a process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # a forked process has none of the threads, and no result may depend on their number
    with slots.get_lock():
        _worker = _Worker(sources, progress, slots.value)
        slots.value += 1
    progress[3 * _worker.slot] = os.getpid()


def _read(number: int, request: Request) -> NDArray[Any] | _Failure:
    assert _worker is not None
    sources, progress, slot = _worker
    source, place = sources[request.source], list(sources).index(request.source)
    found = torch.empty(len(request.rows), *source.shape[1:], dtype=source.dtype)
    for sample, index in zip(found, request.rows.tolist(), strict=True):
        progress[3 * slot + 2] = (place << 48) + index
        progress[3 * slot + 1] = number + 1
        try:
            sample.copy_(source.read(index, request.epoch))
        except Exception as error:
            text = " ".join(str(error).split())
            named = isinstance(error, ValueError) and text.startswith(source.name(index))
            return _Failure(text if named else f"{source.name(index)}: {type(error).__name__}: {text}")
    progress[3 * slot + 1] = 0
    result: NDArray[Any] = found.numpy()  # a tensor would travel through /dev/shm, which may be small
    return result
