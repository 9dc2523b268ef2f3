"""Setting of one candidate: blocks and their copies on the processes of nodes, links between these, and its pace."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from counterflow.planner.local_forecast import LocalRun, local_forecast
from counterflow.planner.model_profile import StageEstimate, local_memory, workload
from counterflow.planner.options import Cluster
from counterflow.schedule.forecast import Forecast, LinkSpec
from counterflow.topology import Edge, Stream, Topology

TOLERANCE = 0.01
"""Relative difference up to which rates are equal."""
_NEIGHBOURS = 32
"""Stages around the slowest one for which lag and depth are chosen: a target only ever waits for neighbours."""
_LARGEST = 2048
"""Largest lag and depth."""


@dataclass(frozen=True)
class Tuned:
    """The pace of a setting at its best lag and depth, and at the smallest ones."""

    lag: int
    depth: int
    seconds_per_batch: float
    least: float
    """Seconds per batch at the smallest lag and depth that are allowed."""
    forecast: Forecast


@dataclass(frozen=True)
class Setting:
    """Blocks of ``stages``, and their copies, with a process for each.

    Args:
        cluster: Machines.
        stages: Estimates of all blocks, bottom to top.
        local: Options of the run; of lag and depth the smallest ones.
        replicas: Copies of the pipeline.
        inner: ``topology.inner``.
        per_node: Processes on each node.
    """

    cluster: Cluster
    stages: Sequence[StageEstimate]
    local: LocalRun
    replicas: int
    inner: str
    per_node: int

    @cached_property
    def topology(self) -> Topology:
        return Topology(len(self.stages), len(self.stages) * self.replicas, self.replicas, self.inner)

    @property
    def nodes(self) -> int:
        return self.topology.ranks // self.per_node

    def nodes_of(self, edge: Edge) -> tuple[int, int]:
        """Nodes of source and destination."""
        source, destination = (self.topology.rank_of(*piece) for piece in (edge.source, edge.destination))
        return source // self.per_node, destination // self.per_node

    def bytes_of(self, edge: Edge) -> float:
        """Bytes of a batch over ``edge``; those of a meeting are shared out to the batches between two of them."""
        stage = self.stages[edge.lower - 1]
        match edge.stream:
            case Stream.ACTIVATION:
                return stage.up
            case Stream.TARGET:
                return stage.down
            case Stream.SYNC:
                return 2 * stage.parameters / self.replicas / self.local.every

    def _crossing(self) -> Iterator[tuple[Edge, int, int]]:
        """Edges between nodes, and their nodes."""
        for edge in self.topology.edges():
            source, destination = self.nodes_of(edge)
            if source != destination:
                yield edge, source, destination

    @property
    def crossing_bytes(self) -> dict[str, float]:
        """Bytes of a batch between nodes, for each of the streams."""
        found = {stream.value: 0.0 for stream in Stream}
        for edge, _, _ in self._crossing():
            found[edge.stream.value] += self.bytes_of(edge)
        return found

    @cached_property
    def _loads(self) -> dict[tuple[int, bool], float]:
        """Bytes of a batch that a node sends (True) and receives (False)."""
        loads: dict[tuple[int, bool], float] = defaultdict(float)
        for edge, source, destination in self._crossing():
            loads[source, True] += self.bytes_of(edge)
            loads[destination, False] += self.bytes_of(edge)
        return loads

    @property
    def sending(self) -> float:
        """Seconds that the busiest link carries what belongs to one batch."""
        bandwidth = self.cluster.link.bandwidth
        if self.cluster.nodes is None:
            return max(map(self.bytes_of, self.topology.remote_edges()), default=0.0) / bandwidth
        return max(self._loads.values(), default=0.0) / bandwidth

    @property
    def computing(self) -> float:
        """Seconds that the slowest block computes for a batch."""
        return max(stage.seconds for stage in self.stages)

    def link_of(self, edge: Edge) -> LinkSpec:
        """Link of an edge between two processes: of a node's link to others it has the share that its bytes have."""
        between, (source, destination) = self.cluster.link, self.nodes_of(edge)
        if self.cluster.nodes is None:
            return between
        if source == destination:
            return self.cluster.node_link
        load = max(self._loads[source, True], self._loads[destination, False])
        share = self.bytes_of(edge) / load if load else 1.0
        return replace(between, bandwidth=between.bandwidth * share) if share else between

    def memory(self, lag: int, depth: int) -> list[int]:
        """Bytes of each block's process."""
        return local_memory(self.stages, replace(self.local, lag=lag, depth=depth), self.replicas)

    def forecast(self, lag: int, depth: int, batches: int, first: int = 0, count: int | None = None) -> Forecast:
        """Forecast of ``count`` stages, from number ``first`` on."""
        stages = self.stages[first:][:count]
        blocks, all_blocks = len(stages), len(self.stages)
        return local_forecast(
            Topology(blocks, blocks * self.replicas, self.replicas, self.inner),
            workload(stages),
            replace(self.local, lag=lag, depth=depth),
            batches=batches,
            vectors=[stage.parameters for stage in stages],
            link_of=lambda edge: self.link_of(replace(edge, lower=edge.lower + first)),
            jitter=self.cluster.jitter(all_blocks, batches, first) or (lambda block, n: 1.0),
            overhead=self.cluster.overhead,
        )

    def tuned(self) -> Tuned:
        """Smallest lag, and then smallest depth, that are as fast as larger ones; less if these do not fit into
        memory."""
        blocks, bandwidth, memory = len(self.stages), self.cluster.link.bandwidth, self.cluster.memory
        slowest = max(range(blocks), key=lambda i: pace(self.stages[i], bandwidth))
        first = max(0, min(slowest - _NEIGHBOURS // 2, blocks - _NEIGHBOURS))
        count = min(_NEIGHBOURS, blocks)
        batches = self.cluster.batches(2 * count + max(48, 2 * self.local.every + 2), slow=40, at_most=1000)
        lag, depth = least = self.local.lag, self.local.depth

        @cache
        def simulate(lag: int, depth: int) -> Forecast:
            return self.forecast(lag, depth, batches, first, count)

        def seconds(lag: int, depth: int) -> float:
            return simulate(lag, depth).seconds_per_batch

        while max(lag, depth) < _LARGEST and seconds(2 * lag, 2 * depth) < (1 - TOLERANCE) * seconds(lag, depth):
            lag, depth = 2 * lag, 2 * depth
        limit = seconds(lag, depth) / (1 - TOLERANCE)
        lag = bisect_left(range(lag), True, least[0], key=lambda fewer: seconds(fewer, depth) <= limit)
        depth = bisect_left(range(depth), True, least[1], key=lambda fewer: seconds(lag, fewer) <= limit)
        while max(self.memory(lag, depth)) > memory:
            lag, depth = (lag, depth - 1) if depth > least[1] else (lag - 1, depth)
        whole = simulate(lag, depth)
        if blocks > _NEIGHBOURS:
            # Enough for the fill, and for a rate that is not below that of the neighbours.
            whole = self.forecast(lag, depth, max(16, 2 * self.local.every + 2))
        return Tuned(lag, depth, max(whole.seconds_per_batch, seconds(lag, depth)), seconds(*least), whole)


def pace(stage: StageEstimate, bandwidth: float) -> float:
    """Seconds between two batches that a stage and the edges above it need."""
    return max(stage.seconds, stage.up / bandwidth, stage.down / bandwidth)
