"""Latency, bandwidth and clock offset between two neighbouring ranks, over the channels that a run uses.

Both ranks call `measure_link` at the same time. The measured times are those that a block would wait: isend and irecv
of gloo, and the hand-over between the thread that computes and the thread that waits.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from counterflow.doctor.check import Check, Status
from counterflow.message import HEADER_BYTES, MessageKind, Tag
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, Communicator, MessageLayout, Payload, TensorSpec

SLOW_MESSAGE = 0.01
"""Seconds of a small message; above this the edge is slow."""
LOW_BANDWIDTH = 1e7
"""Bytes per second."""
LARGE_OFFSET = 0.1
"""Seconds between two wall clocks; above this log lines of two ranks cannot be matched."""

_EMPTY = MessageLayout(())
"""A header alone, 64 bytes."""
_LARGE = MessageLayout((TensorSpec((2**20 - HEADER_BYTES,), torch.uint8),))
"""1 MiB with its header."""
_TIME = MessageLayout((TensorSpec((1,), torch.int64),))

_POSTED_AHEAD = 2
"""Receives that are posted ahead, as in a run."""


@dataclass(frozen=True)
class SampleCounts:
    """Messages of each measurement. The first tenth is warm-up, and is not counted."""

    echoes: int
    large: int
    times: int


THOROUGH = SampleCounts(echoes=500, large=100, times=50)
QUICK = SampleCounts(echoes=100, large=20, times=20)


@dataclass(frozen=True)
class ClockOffset:
    """Seconds by which another rank's wall clock is ahead of this rank's, and the largest error of that."""

    seconds: float
    error: float

    @classmethod
    def from_round_trip(cls, sent: float, received: float, remote: float) -> "ClockOffset":
        """Estimate the offset from one question and its answer (Cristian's algorithm).

        ``remote`` is the other clock's time, read at an unknown moment between ``sent`` and ``received``.
        """
        return cls(remote - (sent + received) / 2, (received - sent) / 2)


@dataclass(frozen=True)
class LinkStats:
    """Measurements of one rank about the two edges between it and its neighbour."""

    median: float
    """Half a round trip, in seconds, of a small message that this rank sends, and its echo."""
    late: float
    """99th percentile of the same."""
    bandwidth: float
    """Bytes per second that arrive at this rank."""
    offset: ClockOffset
    """The neighbour's wall clock minus this rank's."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LinkStats":
        """Inverse of ``dataclasses.asdict``."""
        return cls(**{**values, "offset": ClockOffset(**values["offset"])})


def measure_link(communicator: Communicator, lower: int, counts: SampleCounts) -> LinkStats:
    """Measure the two edges between rank ``lower`` and the rank above it; this rank is one of the two.

    Every rank has one block, and all edges of ``communicator`` are open.

    Raises:
        ChannelError: The other rank is lost, or silent for the communicator's timeout. The text names the measurement,
            and the edge by its ranks.
    """
    link = _Link(communicator, lower)
    turns = (communicator.rank == lower, communicator.rank != lower)
    # The wall clock may be set during the measurement, so times are read from the performance counter.
    epoch = time.time() - time.perf_counter()
    step = "latency"
    try:
        echoes = [trip for asks in turns for trip in link.round_trips(_EMPTY, asks, counts.echoes, tuple)]
        step = "bandwidth"
        arrivals = [seconds for receives in turns for seconds in link.stream(receives, counts.large)]
        step = "clocks"
        times = [trip for asks in turns for trip in link.round_trips(_TIME, asks, counts.times, _wall_time)]
    except ChannelError as error:
        text = str(error).removesuffix(" (engine.timeout)")
        for edge, name in link.names.items():
            text = text.replace(edge, name)
        raise ChannelError(f"{step}: {text}") from error
    halves = [(received - sent) / 2 for sent, received, _ in echoes]
    offsets = [
        ClockOffset.from_round_trip(epoch + sent, epoch + received, int(answer[0].item()) / 1e9)
        for sent, received, answer in times
    ]
    return LinkStats(
        statistics.median(halves),
        statistics.quantiles(halves, n=100, method="inclusive")[98],
        _LARGE.nbytes * (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
        min(offsets, key=lambda offset: offset.error),
    )


class _Link:
    """One rank's end of the two edges to a neighbour. Each measurement opens channels of its own.

    The rank that asks, or receives, gets the times; the other one gets none. ``names`` are the names by ranks of the
    edges, which the transport names by blocks.
    """

    def __init__(self, communicator: Communicator, lower: int) -> None:
        self._communicator = communicator
        up, down = Edge(Stream.ACTIVATION, lower + 1), Edge(Stream.TARGET, lower + 1)
        self.names = {str(up): f"edge {lower}->{lower + 1}", str(down): f"edge {lower + 1}->{lower}"}
        self._out, self._in = (up, down) if communicator.rank == lower else (down, up)

    def round_trips(
        self, layout: MessageLayout, asks: bool, count: int, answer: Callable[[], Payload]
    ) -> list[tuple[float, float, Payload]]:
        """Exchange ``count`` questions and answers.

        Args:
            layout: Layout of both messages.
            asks: True if this rank asks, False if it answers.
            count: Number of round trips; the first tenth is not returned.
            answer: Makes the content of a message.

        Returns:
            For the rank that asks, ``time.perf_counter()`` before the question and after the answer, and the answer.
        """
        sender = self._communicator.sender(self._out, lambda _: layout)
        receiver = self._communicator.receiver(self._in, lambda _: layout, 1, _tags(count))
        trips = []
        for tag in _tags(count):
            sent = time.perf_counter()
            if asks:
                sender.send(tag, answer())
            content = tuple(tensor.clone() for tensor in receiver.receive(tag))
            received = time.perf_counter()
            receiver.release()
            if asks:
                trips.append((sent, received, content))
            else:
                sender.send(tag, answer())
        sender.close()
        receiver.close()
        return trips[count // 10 :]

    def stream(self, receives: bool, count: int) -> list[float]:
        """Send or receive ``count`` large messages; return the time of each arrival, in seconds."""
        if not receives:
            sender = self._communicator.sender(self._out, lambda _: _LARGE)
            content = torch.zeros(_LARGE.payload_nbytes, dtype=torch.uint8)
            for tag in _tags(count):
                sender.send(tag, (content,))
            sender.close()
            return []
        receiver = self._communicator.receiver(self._in, lambda _: _LARGE, _POSTED_AHEAD, _tags(count))
        arrivals = []
        for tag in _tags(count):
            receiver.receive(tag)
            arrivals.append(time.perf_counter())
            receiver.release()
        receiver.close()
        return arrivals[count // 10 :]


def _wall_time() -> Payload:
    return (torch.tensor([time.time_ns()]),)


def _tags(count: int) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(count))


def check_edge(source: int, destination: int, sent: LinkStats, received: LinkStats) -> Check:
    """Check latency and bandwidth of one edge.

    Args:
        source: Rank that sends.
        destination: Rank that receives.
        sent: Measurements of ``source``; its latency is that of the edge.
        received: Measurements of ``destination``; its bandwidth is that of the edge.
    """
    result = (
        f"64 B take {1e6 * sent.median:.0f} us (median), {1e6 * sent.late:.0f} us (99th percentile); "
        f"1 MiB at {received.bandwidth / 1e9:.2f} GB/s"
    )
    advice = "other programs on the cores, or a faster interface: GLOO_SOCKET_IFNAME"
    slow = sent.median > SLOW_MESSAGE or received.bandwidth < LOW_BANDWIDTH
    return Check.judge(f"edge {source}->{destination}", result, (slow, Status.WARN, advice))


def check_wall_clocks(steps: Sequence[ClockOffset]) -> Check:
    """Check the largest distance between two wall clocks.

    ``steps`` are the offsets of each rank's clock from the clock of the rank below, from rank 1 on.
    """
    clocks = list(accumulate((step.seconds for step in steps), initial=0.0))
    first, *_, last = sorted(range(len(clocks)), key=clocks.__getitem__)
    apart = clocks[last] - clocks[first]
    error = sum(step.error for step in steps[min(first, last) : max(first, last)])
    result = f"at most {1e3 * apart:.3f} ms apart (ranks {first} and {last}), +- {1e3 * error:.3f} ms"
    advice = "synchronise the nodes (chrony): logs of ranks will not match"
    return Check.judge("wall clocks", result, (apart > LARGE_OFFSET, Status.WARN, advice))
