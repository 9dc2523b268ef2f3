"""Latency, bandwidth and clocks between two neighbouring ranks, over the channels that a run sends through.

The two ranks call `measure` at the same time. What is timed is what a block would wait for: isend and irecv of gloo,
and the hand-over between the thread that computes and the one that waits.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from counterflow.doctor.clock import Offset
from counterflow.message import HEADER_BYTES, MessageKind, Tag
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, Communicator, MessageLayout, Payload, TensorSpec

_SMALL = MessageLayout(())
"""A header alone, which makes 64 bytes."""
_LARGE = MessageLayout((TensorSpec((2**20 - HEADER_BYTES,), torch.uint8),))
"""1 MiB with its header."""
_TIME = MessageLayout((TensorSpec((1,), torch.int64),))

_AHEAD = 2
"""Receives posted ahead, as a run does."""


@dataclass(frozen=True)
class Amount:
    """Messages of each measurement; the first tenth is not counted."""

    echoes: int
    large: int
    times: int


THOROUGH = Amount(echoes=500, large=100, times=50)
QUICK = Amount(echoes=100, large=20, times=20)


@dataclass(frozen=True)
class Measured:
    """What one end of a pair of edges found out."""

    median: float
    """Half a round trip, in seconds, of a message that this rank sends, and its echo."""
    late: float
    """The same, for the slowest of a hundred."""
    bandwidth: float
    """Bytes per second of what arrives at this rank."""
    ahead: Offset
    """The other rank's wall clock, by this rank's."""

    def note(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, note: dict[str, Any]) -> "Measured":
        return cls(**{**note, "ahead": Offset(**note["ahead"])})


class PairError(Exception):
    """A measurement that did not end; the text says which one, and names the edge by its ranks."""


def measure(comm: Communicator, lower: int, amount: Amount) -> Measured:
    """What this rank, ``lower`` or the one above it, finds out about the edges between the two.

    Every rank has one block, and all edges of ``comm`` are open. Raises `PairError` if the other one is lost, or
    silent for the timeout of ``comm``.
    """
    pair = _Pair(comm, lower)
    turns = (comm.rank == lower, comm.rank != lower)
    step = "latency"
    try:
        halves = [seconds / 2 for asks in turns for seconds in pair.echo(asks, amount.echoes)]
        step = "bandwidth"
        arrivals = [seconds for receives in turns for seconds in pair.stream(receives, amount.large)]
        step = "clocks"
        offsets = [offset for asks in turns for offset in pair.compare(asks, amount.times)]
    except ChannelError as error:
        raise PairError(f"{step}: {pair.by_ranks(str(error))}") from error
    return Measured(
        statistics.median(halves),
        statistics.quantiles(halves, n=100, method="inclusive")[98],
        _LARGE.nbytes * (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
        min(offsets, key=lambda offset: offset.error),
    )


class _Pair:
    """The two edges between neighbours, as one of them sees them. Each measurement opens channels of its own.

    The end that asks, or receives, gets the numbers; the other one gets none.
    """

    def __init__(self, comm: Communicator, lower: int) -> None:
        self._comm = comm
        self._lower = lower
        self._up = Edge(Stream.ACTIVATION, lower + 1)
        self._down = Edge(Stream.TARGET, lower + 1)
        self._out, self._in = (self._up, self._down) if comm.rank == lower else (self._down, self._up)

    def by_ranks(self, text: str) -> str:
        """``text`` of the transport, which counts blocks, and speaks to users of engine.timeout."""
        for edge, name in ((self._up, self.name(up=True)), (self._down, self.name(up=False))):
            text = text.replace(str(edge), name)
        return text.removesuffix(" (engine.timeout)")

    def name(self, up: bool) -> str:
        ends = (self._lower, self._lower + 1)
        return "edge {}->{}".format(*(ends if up else ends[::-1]))

    def echo(self, asks: bool, count: int) -> list[float]:
        """Seconds of each round trip."""
        return [now - before for before, now, _ in self._questions(_SMALL, asks, count, lambda: ())]

    def compare(self, asks: bool, count: int) -> list[Offset]:
        def answer() -> Payload:
            return (torch.tensor([time.time_ns()]),)

        # The wall clock may be set meanwhile: how long a question took is known from the other one.
        start = time.time() - time.perf_counter()
        return [
            Offset.cristian(start + before, start + now, int(theirs[0].item()) / 1e9)
            for before, now, theirs in self._questions(_TIME, asks, count, answer)
        ]

    def _questions(
        self, layout: MessageLayout, asks: bool, count: int, answer: Callable[[], Payload]
    ) -> list[tuple[float, float, Payload]]:
        """When each question left and its answer came, by ``time.perf_counter()``, and the answer."""
        sender = self._comm.sender(self._out, lambda _: layout)
        receiver = self._comm.receiver(self._in, lambda _: layout, 1, _tags(count))
        found = []
        for tag in _tags(count):
            before = time.perf_counter()
            if asks:
                sender.send(tag, answer())
            theirs = tuple(tensor.clone() for tensor in receiver.receive(tag))
            now = time.perf_counter()
            receiver.release()
            if asks:
                found.append((before, now, theirs))
            else:
                sender.send(tag, answer())
        sender.close()
        receiver.close()
        return found[count // 10 :]

    def stream(self, receives: bool, count: int) -> list[float]:
        """When each message had come, in seconds."""
        if not receives:
            sender = self._comm.sender(self._out, lambda _: _LARGE)
            content = torch.zeros(_LARGE.payload_nbytes, dtype=torch.uint8)
            for tag in _tags(count):
                sender.send(tag, (content,))
            sender.close()
            return []
        receiver = self._comm.receiver(self._in, lambda _: _LARGE, _AHEAD, _tags(count))
        arrivals = []
        for tag in _tags(count):
            receiver.receive(tag)
            arrivals.append(time.perf_counter())
            receiver.release()
        receiver.close()
        return arrivals[count // 10 :]


def _tags(count: int) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(count))
