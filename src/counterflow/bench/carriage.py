"""Messages between two ranks, over our channels or over bare gloo, by the clock and by the processors' time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from counterflow.bench.raw import RawReceiver, RawSender, open_group
from counterflow.message import HEADER_BYTES, MessageKind, Tag
from counterflow.topology import Edge, Stream, Topology
from counterflow.transport import Communicator, MessageLayout, Receiver, Sender, TensorSpec

CHANNEL, RAW = "channel", "raw gloo"
WAYS = (CHANNEL, RAW)
DEPTH = 2
"""Receives posted ahead, as runs have by default."""
_UP, _DOWN = Edge(Stream.ACTIVATION, 1), Edge(Stream.TARGET, 1)


@dataclass(frozen=True)
class Load:
    """Messages of ``nbytes`` bytes, the header of a channel included; the first ``warm`` of ``count`` are not timed."""

    nbytes: int
    count: int
    warm: int

    def __post_init__(self) -> None:
        assert self.nbytes >= HEADER_BYTES
        assert 0 < self.warm < self.count - 1


@dataclass(frozen=True)
class Timed:
    """One measurement of one way."""

    seconds: float
    """A message: one after the other in a flow; from one rank to the other of an echo."""
    cpu: float
    """Seconds of processors for a message, of all threads of both ranks."""


class Line:
    """The two directions between ranks 0 and 1, each over both ways; both ranks make theirs at the same time."""

    def __init__(self, comm: Communicator) -> None:
        assert comm.size == 2
        comm.open_edges(Topology(2, 2), "gloo", torch.device("cpu"))
        self._comm = comm
        self._raw: Mapping[Edge, Any] = {edge: open_group(comm.watch.timeout) for edge in (_UP, _DOWN)}

    def flow(self, way: str, load: Load) -> Timed:
        """From rank 0 to rank 1, as fast as it goes; the same answer on both ranks."""
        mine = self._send(way, load) if self._comm.rank == 0 else self._receive(way, load)
        (_, sending), (seconds, receiving) = self._comm.all_gather(mine, "times")
        return Timed(seconds / (load.count - load.warm), (sending + receiving) / (load.count - load.warm))

    def _send(self, way: str, load: Load) -> tuple[float, float]:
        sender, content, cpu = self._sender(way, _UP, load), _content(load), 0.0
        for tag in _tags(load):
            if tag.n == load.warm:
                cpu = time.process_time()
            sender.send(tag, content)
        sender.close()
        return 0.0, time.process_time() - cpu

    def _receive(self, way: str, load: Load) -> tuple[float, float]:
        receiver, start, cpu = self._receiver(way, _UP, load), 0.0, 0.0
        for tag in _tags(load):
            receiver.receive(tag)
            if tag.n == load.warm - 1:
                start, cpu = time.perf_counter(), time.process_time()
            receiver.release()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        receiver.close()
        return seconds, cpu

    def echo(self, way: str, load: Load) -> Timed:
        """To and fro, one at a time; the median of half of a round trip. The same answer on both ranks."""
        asks = self._comm.rank == 0
        sender = self._sender(way, _UP if asks else _DOWN, load)
        receiver = self._receiver(way, _DOWN if asks else _UP, load)
        content, trips, cpu = _content(load), [], 0.0
        for tag in _tags(load):
            if tag.n == load.warm:
                cpu = time.process_time()
            start = time.perf_counter()
            if asks:
                sender.send(tag, content)
            receiver.receive(tag)
            trips.append(time.perf_counter() - start)
            receiver.release()
            if not asks:
                sender.send(tag, content)
        cpu = time.process_time() - cpu
        sender.close()
        receiver.close()
        (half, asking), (_, answering) = self._comm.all_gather((median(trips[load.warm :]) / 2, cpu), "times")
        return Timed(half, (asking + answering) / (2 * (load.count - load.warm)))

    def _sender(self, way: str, edge: Edge, load: Load) -> Sender:
        if way == RAW:
            return RawSender(self._raw[edge], 1 - self._comm.rank, load.nbytes)
        layout = _frame(load)
        return self._comm.sender(edge, lambda _: layout)

    def _receiver(self, way: str, edge: Edge, load: Load) -> Receiver:
        if way == RAW:
            return RawReceiver(self._raw[edge], 1 - self._comm.rank, load.nbytes, DEPTH, load.count)
        layout = _frame(load)
        return self._comm.receiver(edge, lambda _: layout, DEPTH, _tags(load))


@dataclass(frozen=True)
class Found:
    """A measurement of each round, for each way."""

    flows: Mapping[int, Mapping[str, Sequence[Timed]]]
    """By bytes of a message."""
    echoes: Mapping[str, Sequence[Timed]]


def compare(comm: Communicator, loads: Sequence[Load], echo: Load, rounds: int) -> Found:
    """Every way in every round, and every other round in the opposite order."""
    line = Line(comm)
    flows: dict[int, dict[str, list[Timed]]] = {load.nbytes: {way: [] for way in WAYS} for load in loads}
    echoes: dict[str, list[Timed]] = {way: [] for way in WAYS}
    for i in range(rounds):
        for way in WAYS if i % 2 == 0 else WAYS[::-1]:
            echoes[way].append(line.echo(way, echo))
        for load in loads:
            for way in WAYS if i % 2 == 0 else WAYS[::-1]:
                flows[load.nbytes][way].append(line.flow(way, load))
    return Found(flows, echoes)


def _frame(load: Load) -> MessageLayout:
    layout = MessageLayout((TensorSpec((load.nbytes - HEADER_BYTES,), torch.uint8),))
    assert layout.nbytes == load.nbytes, "messages of whole cache lines"
    return layout


def _content(load: Load) -> tuple[torch.Tensor]:
    # Not zeros, which may all be one page of the system's until they are written, and are sent faster than others.
    return (torch.ones(load.nbytes - HEADER_BYTES, dtype=torch.uint8),)


def _tags(load: Load) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(load.count))
