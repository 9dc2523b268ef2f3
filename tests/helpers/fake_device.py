"""A GPU that is none: streams and events of a `CudaDevice`, over CPU tensors, and gloo and NCCL between two of them.

Nothing that is put on a stream happens before something waits for it, so whatever the code under test does not order
happens too late. `RaceError` is raised where the host touches memory that work on a stream still reads or writes, and
where two streams touch the same memory in no order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from torch import Tensor

LIMIT = 10.0
"""Seconds that any wait of a test may last."""


class RaceError(AssertionError):
    """Two accesses to the same memory that nothing orders."""


Bytes = tuple[int, int]
"""First and last address of some memory, the last one excluded."""


def extent(tensor: Tensor) -> Bytes:
    start = tensor.data_ptr()
    return start, start + (tensor.numel() * tensor.element_size() if tensor.is_contiguous() else _span(tensor))


def _span(tensor: Tensor) -> int:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


@dataclass(eq=False)
class Operation:
    """Work on a stream."""

    name: str
    run: Callable[[], bool]
    """Does it, and returns True; False if it has to wait for another stream or for a peer."""
    reads: Sequence[Bytes] = ()
    writes: Sequence[Bytes] = ()
    number: int = 0

    def clashes(self, reads: Sequence[Bytes], writes: Sequence[Bytes]) -> bool:
        return _meet(self.writes, [*reads, *writes]) or _meet(self.reads, writes)


def _meet(some: Sequence[Bytes], others: Sequence[Bytes]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


@dataclass(eq=False)
class Stream:
    name: str
    pending: deque[Operation] = field(default_factory=deque)
    done: int = 0
    """Operations that are done."""

    @property
    def put(self) -> int:
        return self.done + len(self.pending)


class Event:
    """After the work so far of a stream."""

    def __init__(self, device: "FakeDevice", stream: Stream) -> None:
        self.device, self.stream, self.position = device, stream, stream.put
        self.time: float | None = None
        """Milliseconds, of a stamp."""

    def query(self) -> bool:
        with self.device.lock:
            return self.device.advance(self.stream, self.position)

    def synchronize(self) -> None:
        deadline = time.monotonic() + LIMIT
        while not self.query():
            assert time.monotonic() < deadline, (
                f"nothing comes on the {self.stream.name}: {self.stream.pending[0].name}"
            )
            time.sleep(1e-4)
        self.device.log(f"wait for the {self.stream.name}")

    def elapsed_time(self, end_event: Any) -> float:
        assert self.query(), "the time of an event before it is done"
        assert end_event.query(), "the time of an event before it is done"
        assert self.time is not None, "an event without a time"
        return float(torch.tensor(end_event.time - self.time, dtype=torch.float32))  # as CUDA has it


class FakeDevice:
    """Stands for `counterflow.transport.cuda_device.CudaDevice`, and for what blocks do on it (`launch`)."""

    def __init__(self, lock: "threading.RLock | None" = None) -> None:
        self.lock = lock or threading.RLock()
        """One lock for all that happens on devices that exchange messages."""
        self.compute, self.side = Stream("compute stream"), Stream("side stream")
        self.streams = [self.compute, self.side]
        self.operations: list[str] = []
        """All that was done, in order."""
        self.pinned_memory: list[Bytes] = []
        self.clock = 0.0
        """Milliseconds on the device."""
        self._kept: list[Tensor] = []
        self._made: dict[int, Stream] = {}
        self._lent: set[int] = set()
        self._current = threading.local()
        self._numbers = count()

    # -- what the code under test calls

    def pinned(self, nbytes: int) -> Tensor:
        buffer = self.memory(nbytes)
        self.pinned_memory.append(extent(buffer))
        return buffer

    def memory(self, nbytes: int) -> Tensor:
        buffer = torch.full((nbytes,), 0xAA, dtype=torch.uint8)
        self._kept.append(buffer)  # no address is used twice
        return buffer

    def copy(self, target: Tensor, source: Tensor) -> None:
        if not self._known(source):  # pageable: it is read before the call returns
            source = source.clone()
        self.launch("copy", lambda: target.copy_(source), reads=[source], writes=[target])

    def upload(self, source: Tensor) -> Tensor:
        assert any(start <= source.data_ptr() < max(end, start + 1) for start, end in self.pinned_memory), "not pinned"
        made = torch.full_like(source, 7)
        self._kept.append(made)
        self._made[made.data_ptr()] = self.stream
        self.launch("upload", lambda: made.copy_(source), reads=[source], writes=[made])
        return made

    def download(self, source: Tensor) -> Tensor:
        self.synchronize()
        self.touch("download", reads=[source])
        return source.clone()

    def lend(self, tensor: Tensor) -> None:
        self.log("lend")
        self._lent.add(tensor.data_ptr())

    def record(self) -> Event:
        with self.lock:
            self.log(f"record on the {self.stream.name}")
            return Event(self, self.stream)

    def stamp(self) -> Event:
        with self.lock:
            stream, event = self.stream, None

            def run() -> bool:
                event.time = self.clock
                return True

            self._put(stream, Operation("stamp", run))
            event = Event(self, stream)
            return event

    def wait(self, event: Event) -> None:
        with self.lock:
            self.log(f"the {self.stream.name} waits for the {event.stream.name}")
            self._put(self.stream, Operation(f"wait for the {event.stream.name}", event.query))

    def synchronize(self) -> None:
        self.record().synchronize()

    @contextmanager
    def aside(self) -> Iterator[None]:
        before, self._current.stream = self.stream, self.side
        try:
            yield
        finally:
            self._current.stream = before

    # -- what stands for blocks, and for the driver

    @property
    def stream(self) -> Stream:
        return getattr(self._current, "stream", self.compute)

    def launch(
        self,
        name: str,
        work: Callable[[], object],
        reads: Sequence[Tensor] = (),
        writes: Sequence[Tensor] = (),
        milliseconds: float = 0.0,
    ) -> None:
        """Put ``work`` on this thread's stream; it takes so many ``milliseconds``."""

        def run() -> bool:
            work()
            self.clock += milliseconds
            return True

        with self.lock:
            for tensor in reads:
                made = self._made.get(tensor.data_ptr(), self.stream)
                if made is not self.stream and tensor.data_ptr() not in self._lent:
                    raise RaceError(
                        f"{name} on the {self.stream.name}: its memory belongs to the {made.name}, and was not lent"
                    )
            self.log(f"{name} on the {self.stream.name}")
            self._put(self.stream, Operation(name, run, [*map(extent, reads)], [*map(extent, writes)]))

    def touch(self, name: str, reads: Sequence[Tensor] = (), writes: Sequence[Tensor] = ()) -> None:
        """The host reads or writes memory now. Raises `RaceError`."""
        with self.lock:
            self._check(name, [*map(extent, reads)], [*map(extent, writes)], None)

    def advance(self, stream: Stream, position: int) -> bool:
        """Do the work of ``stream`` up to ``position``, as far as it can be done; True if it is all done."""
        while stream.done < position:
            operation = stream.pending[0]
            self._check(operation.name, operation.reads, operation.writes, operation)
            if not operation.run():
                return False
            stream.pending.popleft()
            stream.done += 1
        return True

    def log(self, text: str) -> None:
        self.operations.append(text)

    def put(self, stream: Stream, operation: Operation) -> None:
        with self.lock:
            self._put(stream, operation)

    def _put(self, stream: Stream, operation: Operation) -> None:
        operation.number = next(self._numbers)
        stream.pending.append(operation)

    def _known(self, tensor: Tensor) -> bool:
        return any(_meet([extent(tensor)], [extent(kept)]) for kept in self._kept)

    def own(self, tensor: Tensor) -> Tensor:
        """``tensor`` as one that lies on the device."""
        self._kept.append(tensor)
        return tensor

    def _check(self, name: str, reads: Sequence[Bytes], writes: Sequence[Bytes], own: Operation | None) -> None:
        """Raises `RaceError` if work that was put on another stream before is not done, and touches the same memory."""
        for stream in self.streams:
            for other in stream.pending:
                if other is own or (own is not None and other.number > own.number):
                    break
                if other.clashes(reads, writes):
                    raise RaceError(f"{name}: {other.name} on the {stream.name} is not done")


# -- what carries messages


class Wire:
    """A directed edge between two devices: a process group of two ranks, with the order of its messages."""

    def __init__(self, source: FakeDevice, destination: FakeDevice) -> None:
        self.source, self.destination = source, destination
        assert source.lock is destination.lock
        self.lock = source.lock
        self.sent: deque[Any] = deque()
        self.awaited: deque[Any] = deque()
        self.closed = False

    def check(self) -> None:
        if self.closed:
            raise RuntimeError("the wire is closed")

    def match(self) -> None:
        """Move the messages of which both ends are there."""
        while self.sent and self.awaited:
            send, receive = self.sent.popleft(), self.awaited.popleft()
            assert send.piece.numel() == receive.piece.numel(), "sizes differ"
            receive.piece.copy_(send.piece)
            send.done = receive.done = True


class GlooWork:
    """Memory is the host's from the call to the end of `wait`."""

    def __init__(self, device: FakeDevice, wire: Wire, piece: Tensor, sends: bool) -> None:
        self.done, self.piece, self._wire, self._device, self._sends = False, piece, wire, device, sends
        with wire.lock:
            self._touch("the call")
            (wire.sent if sends else wire.awaited).append(self)

    def _touch(self, what: str) -> None:
        name = f"gloo's {'send' if self._sends else 'receive'}, {what}"
        if self._sends:
            self._device.touch(name, reads=[self.piece])
        else:
            self._device.touch(name, writes=[self.piece])

    def wait(self, timeout: timedelta = timedelta(seconds=LIMIT)) -> bool:
        deadline = time.monotonic() + min(LIMIT, timeout.total_seconds())
        while True:
            self._wire.check()
            with self._wire.lock:
                self._touch("its end")
                self._wire.match()
                if self.done:
                    return True
            if time.monotonic() > deadline:
                raise RuntimeError("timed out")
            time.sleep(1e-4)

    def is_completed(self) -> bool:
        return False  # gloo says so until wait


class NcclWork:
    """An operation on the stream of its communicator, after the work so far of the stream that was current."""

    def __init__(self, device: FakeDevice, wire: Wire, piece: Tensor, sends: bool, stream: Stream) -> None:
        self.done, self.piece, self._device, self._wire = False, piece, device, wire
        ready, queue, entered = device.record(), wire.sent if sends else wire.awaited, False

        def run() -> bool:
            nonlocal entered
            if not entered:
                queue.append(self)
                entered = True
            wire.match()
            return self.done

        name, memory = f"NCCL's {'send' if sends else 'receive'}", [extent(piece)]
        device.put(stream, Operation(f"{name} waits", ready.query))
        device.put(stream, Operation(name, run, memory if sends else (), () if sends else memory))
        self._end = Event(device, stream)

    def is_completed(self) -> bool:
        self._wire.check()
        return self._end.query()

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._device.wait(self._end)
        return True


class Wires:
    """Stands for torch.distributed's ``isend`` and ``irecv``; a group is an end of a `Wire`: (wire, device)."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._streams: dict[tuple[int, int], Stream] = {}
        self._wires: set[Wire] = set()

    def isend(self, tensor: Tensor, dst: int | None = None, group: Any = None, **_: Any) -> Any:
        return self._work(tensor, group, sends=True)

    def irecv(self, tensor: Tensor, src: int | None = None, group: Any = None, **_: Any) -> Any:
        return self._work(tensor, group, sends=False)

    def _work(self, tensor: Tensor, group: tuple[Wire, FakeDevice], sends: bool) -> GlooWork | NcclWork:
        wire, device = group
        self._wires.add(wire)
        if self._backend == "gloo":
            return GlooWork(device, wire, tensor, sends)
        key = id(wire), id(device)
        if key not in self._streams:
            self._streams[key] = Stream(f"stream of communicator {len(self._streams)}")
            device.streams.append(self._streams[key])
        return NcclWork(device, wire, tensor, sends, self._streams[key])

    def close(self) -> None:
        """End all threads that wait."""
        for wire in self._wires:
            wire.closed = True
