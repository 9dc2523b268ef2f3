"""Forecast of local rules by simulation: copies of a pipeline that meet, batches in parts, and links that differ.

With one replica, one part and equal links it is `forecast` of the schedule ``free``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from counterflow.engine.replica_sync import BUCKET
from counterflow.schedule.event_sim import BUFFERED, COMPUTE, LOCAL, Record, SimEdge, SimOp, SimStep, TimedAction
from counterflow.schedule.forecast import SEND_BUFFERS, Forecast, Jitter, LinkSpec, Workload, simulate, steady_window
from counterflow.schedule.local_schedule import Action, Op, RunPlan, rank_program
from counterflow.topology import Edge, Piece, Stream, Topology

LinkOf = Callable[[Edge], LinkSpec]
"""Link of an edge between two ranks."""


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """Options of a run of a local rule that its pace depends on."""

    lag: int = 2
    depth: int = 2
    """Activations, or parts of them, that a channel holds."""
    parts: int = 1
    """Equal parts in which a batch travels and is learnt (``train.accumulate``)."""
    gradients: bool = True
    """Copies of a block meet with gradients after every batch, and update then; else with parameters."""
    every: int = 1
    """Batches between two meetings."""
    delay: int = 0
    """Batches until the mean of a meeting takes effect."""

    def __post_init__(self) -> None:
        for name, least in (("lag", 0), ("depth", 1), ("parts", 1), ("every", 1), ("delay", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.delay >= self.every:
            raise ValueError(f"delay={self.delay}: must be less than every={self.every}")
        if self.gradients and self.every > 1:
            raise ValueError(f"every={self.every}: allowed for meetings with gradients is 1")


def bucket_count(vector: int) -> int:
    """Messages in which ``vector`` bytes of a meeting travel to each copy, if no tensor is large."""
    return max(1, vector // (4 * BUCKET))


def local_forecast(
    topology: Topology,
    workload: Workload,
    local: LocalRun,
    *,
    batches: int,
    vectors: Sequence[int] = (),
    link_of: LinkOf = lambda edge: LinkSpec(),
    jitter: Jitter = lambda block, n: 1.0,
    overhead: float = 0.0,
    record: Record[Action] = lambda *_: None,
) -> Forecast:
    """Simulate the first batches of a run that goes on; its second half counts as steady state.

    Args:
        topology: Blocks, their copies, and ranks.
        workload: Costs of the network's blocks for a replica's share of a batch, and bytes of the messages of one.
        local: Options of the run.
        batches: Update batches, at least 2.
        vectors: Bytes that each block brings to a meeting, bottom to top; nothing by default.
        link_of: Links between ranks; by default messages take no time.
        jitter: Factors by which blocks take longer, all copies alike.
        overhead: Seconds that every action costs its rank besides its computation.
        record: Called with every action; with the one that learns several times if gradients leave in between.

    Raises:
        ValueError: No run allows these arguments.
    """
    if batches < 2:
        raise ValueError(f"batches={batches}: must be at least 2")
    if local.lag < (topology.ranks > 1):
        raise ValueError(f"lag={local.lag}: must be at least 1 on ranks={topology.ranks}")
    if len(workload.stages) != topology.blocks or len(vectors) not in (0, topology.blocks):
        raise ValueError(f"vectors={list(vectors)}: must be one size for each of blocks={topology.blocks}, or none")
    network = _Network(topology, workload, local, vectors or [0] * topology.blocks, link_of)
    return _simulate(network, batches, jitter, overhead, record)


class _Network:
    """Channels of all pieces, and the steps of their actions on them."""

    def __init__(
        self, topology: Topology, workload: Workload, local: LocalRun, vectors: Sequence[int], link_of: LinkOf
    ) -> None:
        self.topology, self.workload, self.local = topology, workload, local
        self.meets = topology.replicas > 1
        self._buckets = [bucket_count(vector) for vector in vectors]
        self._edges: dict[Edge, SimEdge] = {}
        self.buffered = [0.0] * topology.ranks
        for edge in topology.edges():
            source, destination = topology.rank_of(*edge.source), topology.rank_of(*edge.destination)
            if source == destination:
                self._edges[edge] = SimEdge(source, source)
                continue
            size, room = self._size(edge, vectors), self._room(edge)
            link = link_of(edge)
            # One more is posted than the room, for the message that the block is working on.
            self._edges[edge] = SimEdge(
                source,
                destination,
                posted=room + 1,
                buffers=SEND_BUFFERS,
                seconds=size / link.bandwidth,
                latency=link.latency,
                credit=link.latency,
                sends=BUFFERED,
            )
            if edge.stream is Stream.ACTIVATION:
                self.buffered[destination] += (room + 1) / local.parts
                self.buffered[source] += SEND_BUFFERS / local.parts

    def _size(self, edge: Edge, vectors: Sequence[int]) -> float:
        """Bytes of a message."""
        if edge.stream is Stream.SYNC:
            return vectors[edge.lower - 1] / self.topology.replicas / self._buckets[edge.lower - 1]
        if edge.stream is Stream.ACTIVATION:
            return self.workload.up[edge.lower - 1] / self.local.parts
        return self.workload.down[edge.lower - 1] if self.workload.down else 0

    def _room(self, edge: Edge) -> int:
        """Messages that the receiver accepts ahead."""
        if edge.stream is Stream.SYNC:
            return self._buckets[edge.lower - 1]
        return self.local.depth if edge.stream is Stream.ACTIVATION else self.local.lag

    def chunks(self, action: Action) -> int:
        """Intervals of the computation of ``action``: during the last backward pass, gradients leave in buckets."""
        overlaps = self.meets and self.local.gradients and action.op is Op.LEARN and action.completes is not None
        return self._buckets[action.block - 1] if overlaps else 1

    def steps(self, action: Action) -> list[tuple[SimStep, ...]]:
        """Steps on channels, a tuple for each of `chunks`."""
        block, r = action.block, action.replica
        match action.op:
            case Op.TARGET:
                incoming = self._incoming(Edge(Stream.TARGET, block, r))
                receive, post = self._receive(incoming), self._post(incoming)
                return [(*receive, *post, COMPUTE, *self._send(Edge(Stream.TARGET, block - 1, r)))]
            case Op.FORWARD:
                receive = self._receive(self._incoming(Edge(Stream.ACTIVATION, block - 1, r)))
                return [(*receive, COMPUTE, *self._send(Edge(Stream.ACTIVATION, block, r)))]
            case Op.LEARN:
                post = self._post(self._incoming(Edge(Stream.ACTIVATION, block - 1, r)))
                early = [(COMPUTE, *self._send(*self._sync(action, out=True)))] * (self.chunks(action) - 1)
                return [*early, (COMPUTE, *post)]
            case _:
                return [self._meeting(action)]

    def _meeting(self, action: Action) -> tuple[SimStep, ...]:
        out, incoming = self._sync(action, out=True), self._incoming(*self._sync(action, out=False))
        buckets = self._buckets[action.block - 1]
        if action.op is Op.SCATTER:
            left = 1 if self.local.gradients else buckets  # the others left during the backward pass
            return (COMPUTE, *self._send(*out) * left)
        bucket = (*self._receive(incoming), *self._post(incoming))
        if action.op is Op.REDUCE:
            return (*bucket, COMPUTE, *self._send(*out), *(*bucket, *self._send(*out)) * (buckets - 1))
        assert action.op is Op.GATHER
        return (*bucket * buckets, COMPUTE)

    def _sync(self, action: Action, out: bool) -> list[Edge]:
        """Edges between the copy of ``action`` and the others, in their order."""
        r, peers = action.replica, (p for p in range(self.topology.replicas) if p != action.replica)
        return [Edge(Stream.SYNC, action.block, *((r, peer) if out else (peer, r))) for peer in peers]

    def _incoming(self, *edges: Edge) -> list[SimEdge]:
        return [self._edges[edge] for edge in edges if edge in self._edges]

    @staticmethod
    def _receive(incoming: Sequence[SimEdge]) -> tuple[SimStep, ...]:
        return tuple((SimOp.RECEIVE, edge) for edge in incoming)

    @staticmethod
    def _post(incoming: Sequence[SimEdge]) -> tuple[SimStep, ...]:
        return tuple((SimOp.POST_RECEIVE, edge) for edge in incoming if edge.sends is not LOCAL)

    def _send(self, *edges: Edge) -> tuple[SimStep, ...]:
        outgoing = (self._edges[edge] for edge in edges if edge in self._edges)
        return tuple((op, edge) for edge in outgoing for op in edge.sends)

    def seconds(self, action: Action) -> float:
        """Seconds that ``action`` computes."""
        cost, at_meeting = self.workload.stages[action.block - 1], self.meets and self.local.gradients
        match action.op:
            case Op.TARGET:
                return cost.target
            case Op.FORWARD:
                return cost.forward / self.local.parts
            case Op.LEARN:
                update = 0.0 if at_meeting or action.completes is None else cost.update
                return cost.backward / self.local.parts + update
            case Op.GATHER if at_meeting:
                return cost.update
            case _:
                return 0.0


def _simulate(network: _Network, batches: int, jitter: Jitter, overhead: float, record: Record[Action]) -> Forecast:
    topology, local = network.topology, network.local
    blocks, ranks, down = topology.blocks, topology.ranks, network.workload.down
    # The run is longer than what is simulated, so that there are targets to emit until the end.
    plan = RunPlan(
        batches + local.lag * blocks + 1,
        local.lag,
        predicts_down=not down and blocks > 1,
        parts=local.parts,
        replicas=topology.replicas,
        sync_every=local.every,
        sync_delay=local.delay,
    )

    def timed(pieces: Sequence[Piece]) -> Iterator[TimedAction[Action]]:
        actions = rank_program(pieces, plan, lambda n: n == batches - 1)
        steps: dict[tuple[Any, ...], list[tuple[SimStep, ...]]] = {}
        for action in takewhile(lambda action: action.op is not Op.SAVE, actions):
            key = (action.op.value, action.block, action.replica, action.completes is None)
            chunks = steps.get(key) or steps.setdefault(key, network.steps(action))
            n = max(0, action.n - plan.lead(action.block)) if action.op is Op.TARGET else action.n
            seconds = (network.seconds(action) * jitter(action.block, n) + overhead) / len(chunks)
            for chunk in chunks:
                yield action, seconds, chunk

    # The pattern of waits repeats after a round trip of targets, and after a meeting.
    round_trip = (blocks - 1) * local.lag + 1 if down else 1
    window = steady_window(batches, min(blocks, ranks), local.every * math.ceil(round_trip / local.every))
    changes = {Op.FORWARD: 1, Op.LEARN: -1}

    def change(action: Action) -> float:
        return changes.get(action.op, 0) / local.parts / network.chunks(action)

    programs = [timed(topology.pieces_of(rank)) for rank in range(ranks)]
    return simulate(programs, window, change, network.buffered, record)
