"""Point-to-point benchmark: messages between two ranks, over channels and over bare gloo, in wall-clock and CPU time.

The baseline is isend and irecv of gloo with as many buffers as a channel, and as many receives posted ahead. It sends
bare bytes: no header is written or checked, nothing is copied into a buffer or read, and the computing thread waits
itself.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import cycle
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.message import HEADER_BYTES, MessageKind, Tag
from counterflow.topology import Edge, Stream, Topology
from counterflow.transport import Communicator, MessageLayout, Payload, Receiver, Sender, TensorSpec

CHANNEL, GLOO = "channel", "raw gloo"
WAYS = (CHANNEL, GLOO)
DEPTH = 2
"""Receives posted ahead, the default of runs."""
_UP, _DOWN = Edge(Stream.ACTIVATION, 1), Edge(Stream.TARGET, 1)


@dataclass(frozen=True)
class MessageSeries:
    """``count`` messages of ``nbytes`` bytes, a channel's header included; the first ``warmup`` are not timed."""

    nbytes: int
    count: int
    warmup: int

    def __post_init__(self) -> None:
        assert 0 < self.warmup < self.count - 1

    def tags(self) -> Iterator[Tag]:
        return (Tag(MessageKind.ACTIVATION, n) for n in range(self.count))

    @cached_property
    def layout(self) -> MessageLayout:
        layout = MessageLayout((TensorSpec((self.nbytes - HEADER_BYTES,), torch.uint8),))
        assert layout.nbytes == self.nbytes, "messages of whole cache lines"
        return layout


@dataclass(frozen=True)
class MessageTime:
    """Seconds per message in one measurement."""

    seconds: float
    """Wall clock: one message after the other in a flow, half of a round trip in an echo."""
    cpu: float
    """CPU time of all threads of both ranks."""


class GlooSender:
    """`Sender` of bare bytes."""

    def __init__(self, group: Any, peer: int, series: MessageSeries) -> None:
        self._group, self._peer = group, peer
        self._buffers = [torch.ones(series.nbytes, dtype=torch.uint8) for _ in range(2)]  # as many as a channel has
        self._ring = cycle(self._buffers)
        self._sending: deque[Any] = deque()

    def send(self, tag: Tag, tensors: Payload) -> None:
        if len(self._sending) == len(self._buffers):
            self._sending.popleft().wait()
        self._sending.append(dist.isend(next(self._ring), self._peer, group=self._group))

    def close(self) -> None:
        for work in self._sending:
            work.wait()


class GlooReceiver:
    """`Receiver` of bare bytes."""

    def __init__(self, group: Any, peer: int, series: MessageSeries) -> None:
        self._group, self._peer = group, peer
        self._unposted = series.count
        self._ring = cycle([torch.zeros(series.nbytes, dtype=torch.uint8) for _ in range(DEPTH + 1)])
        self._posted: deque[tuple[Tensor, Any]] = deque()
        for _ in range(DEPTH + 1):
            self.release()

    def receive(self, tag: Tag) -> Payload:
        buffer, work = self._posted.popleft()
        work.wait()
        return (buffer,)

    def release(self) -> None:
        """Post a receive into the buffer that was received first."""
        if self._unposted:
            self._unposted -= 1
            buffer = next(self._ring)
            self._posted.append((buffer, dist.irecv(buffer, self._peer, group=self._group)))

    def close(self) -> None:
        assert not self._posted, "all messages were taken"


class P2PBenchmark:
    """Both directions between ranks 0 and 1, each over both ways. Both ranks construct it at the same time."""

    def __init__(self, comm: Communicator) -> None:
        assert comm.size == 2
        comm.open_edges(Topology(2, 2), "gloo", torch.device("cpu"))
        self._comm = comm
        self._groups = dict[Edge, Any]()
        for edge in (_UP, _DOWN):
            group: Any = dist.new_group([0, 1], backend="gloo", timeout=timedelta(seconds=comm.watchdog.timeout))
            dist.all_reduce(torch.zeros(1), group=group)  # connects its sockets
            self._groups[edge] = group

    def measure(self, way: str, series: MessageSeries, echo: bool) -> MessageTime:
        """Send ``series`` over one of `WAYS`. Both ranks return the same.

        Args:
            way: One of `WAYS`.
            series: The messages.
            echo: Send one message at a time from rank 0 to rank 1 and back; the median counts. Otherwise rank 0 sends
                to rank 1 as fast as possible.
        """
        first = self._comm.rank == 0
        sender = self._sender(way, _UP if first else _DOWN, series) if first or echo else None
        receiver = self._receiver(way, _DOWN if first else _UP, series) if echo or not first else None
        # Not zeros: the system may map them all to one page until they are written, which is sent faster than others.
        content = (torch.ones(series.nbytes - HEADER_BYTES, dtype=torch.uint8),)
        trips, start, cpu = [], 0.0, 0.0
        for tag in series.tags():
            sent = time.perf_counter()
            if tag.n == series.warmup:
                start, cpu = sent, time.process_time()
            if sender is not None and first:
                sender.send(tag, content)
            if receiver is not None:
                receiver.receive(tag)
                trips.append(time.perf_counter() - sent)
                receiver.release()
            if sender is not None and not first:
                sender.send(tag, content)
        seconds = time.perf_counter() - start
        if sender is not None:
            sender.close()  # waits for the last messages
        cpu = time.process_time() - cpu
        if receiver is not None:
            receiver.close()
        timed = series.count - series.warmup
        own = median(trips[series.warmup :]) / 2 if echo else seconds / timed
        (round_trip, cpu_0), (flow, cpu_1) = self._comm.all_gather((own, cpu), "times")
        return MessageTime(round_trip if echo else flow, (cpu_0 + cpu_1) / (2 * timed if echo else timed))

    def _sender(self, way: str, edge: Edge, series: MessageSeries) -> Sender:
        group, peer = self._groups[edge], 1 - self._comm.rank
        return GlooSender(group, peer, series) if way == GLOO else self._comm.sender(edge, lambda _: series.layout)

    def _receiver(self, way: str, edge: Edge, series: MessageSeries) -> Receiver:
        if way == GLOO:
            return GlooReceiver(self._groups[edge], 1 - self._comm.rank, series)
        return self._comm.receiver(edge, lambda _: series.layout, DEPTH, series.tags())


WayTimes = Mapping[str, Sequence[MessageTime]]
"""By way, one per round."""


def compare_ways(
    comm: Communicator, flows: Sequence[MessageSeries], echo: MessageSeries, rounds: int
) -> tuple[Mapping[int, WayTimes], WayTimes]:
    """Measure both ways in every round, and in reverse order in every other round.

    Args:
        world: The two ranks.
        flows: Series of different sizes, sent as fast as possible.
        echo: Series sent to and fro.
        rounds: Number of rounds.

    Returns:
        The times of ``flows``, by bytes of a message, and those of ``echo``.
    """
    benchmark = P2PBenchmark(comm)
    flow_times: dict[int, dict[str, list[MessageTime]]] = {flow.nbytes: {way: [] for way in WAYS} for flow in flows}
    echo_times: dict[str, list[MessageTime]] = {way: [] for way in WAYS}
    for i in range(rounds):
        order = WAYS if i % 2 == 0 else WAYS[::-1]
        for way in order:
            echo_times[way].append(benchmark.measure(way, echo, echo=True))
        for flow in flows:
            for way in order:
                flow_times[flow.nbytes][way].append(benchmark.measure(way, flow, echo=False))
    return flow_times, echo_times
