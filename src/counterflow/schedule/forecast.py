"""Forecast of a run by simulation: how fast it trains, which ranks wait, and how many activations they hold."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from counterflow.schedule.event_sim import (
    BUFFERED,
    COMPUTE,
    A,
    Record,
    SimEdge,
    SimOp,
    SimStep,
    TimedAction,
    local_programs,
    run,
)
from counterflow.schedule.local_schedule import Action, Op, RunPlan, rank_program
from counterflow.schedule.pipeline_schedules import (
    PIPELINES,
    PipelineAction,
    PipelineOp,
    blocks_of_stages,
    check_microbatches,
    owners,
    pipeline_actions,
)
from counterflow.topology import Edge, Piece, Stream, Topology

Jitter = Callable[[int, int], float]
"""Factor by which a block (counted from 1) takes longer for an update batch (counted from 0)."""

SCHEDULES = ("free", *PIPELINES)

SEND_BUFFERS = 2
"""Send buffers of an edge of the free engine: one is filled while the other one is being sent."""

_MESSAGES = {
    PipelineOp.FORWARD: (SimOp.RECEIVE, Stream.ACTIVATION, 1),
    PipelineOp.BACKWARD: (SimOp.RECEIVE, Stream.TARGET, 0),
    PipelineOp.BACKWARD_INPUT: (SimOp.RECEIVE, Stream.TARGET, 0),
    PipelineOp.RECV_F: (SimOp.POST_RECEIVE, Stream.ACTIVATION, 1),
    PipelineOp.SEND_F: (SimOp.SEND, Stream.ACTIVATION, 0),
    PipelineOp.WAIT_SEND_F: (SimOp.WAIT_SEND, Stream.ACTIVATION, 0),
    PipelineOp.RECV_B: (SimOp.POST_RECEIVE, Stream.TARGET, 0),
    PipelineOp.SEND_B: (SimOp.SEND, Stream.TARGET, 1),
    PipelineOp.WAIT_SEND_B: (SimOp.WAIT_SEND, Stream.TARGET, 1),
}
"""Operation on a channel, its stream, and how far its lower end is below the stage."""
_HELD: dict[Op | PipelineOp, int] = {
    Op.FORWARD: 1,
    Op.LEARN: -1,
    PipelineOp.FORWARD: 1,
    PipelineOp.BACKWARD: -1,
    PipelineOp.BACKWARD_WEIGHT: -1,
}
"""Change of the activations that a block holds for a batch, or a stage for a micro-batch."""


@dataclass(frozen=True)
class StageCost:
    """Seconds that one block takes for one whole update batch."""

    forward: float
    backward: float
    """Losses and all gradients, without the update."""
    update: float = 0.0
    target: float = 0.0
    """Read a target message and make the next one (free only)."""
    weight_share: float = 0.5
    """Part of ``backward`` that no stage below waits for: the gradients of the weights (zbh1, zbv only)."""

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "update", "target"):
            _require_seconds(name, getattr(self, name))
        _require(0 <= self.weight_share <= 1, "weight_share", self.weight_share, "must be between 0 and 1")


@dataclass(frozen=True)
class LinkSpec:
    """Every directed edge between neighbouring stages on different ranks; it sends one message after the other.

    As with gloo, a message leaves when the sender knows of a posted receive, which takes a latency as well. Stages
    that share their ranks do not share bandwidth.
    """

    latency: float = 0.0
    """Seconds from the end of a send to the arrival."""
    bandwidth: float = math.inf
    """Bytes per second."""

    def __post_init__(self) -> None:
        _require_seconds("latency", self.latency)
        _require(self.bandwidth > 0, "bandwidth", self.bandwidth, "must be more than 0 bytes a second")


@dataclass(frozen=True)
class Workload:
    """Costs of all blocks, bottom to top, and sizes of the messages between them."""

    stages: Sequence[StageCost]
    up: Sequence[int]
    """Bytes of a whole batch's activation leaving each block but the top; the gradients of pipelines are as large."""
    down: Sequence[int] = ()
    """Bytes of a target message entering each block but the top; empty for a rule that sends no targets, as AL."""

    def __post_init__(self) -> None:
        edges = len(self.stages) - 1
        limit = f"must be {edges} sizes, one for each block but the top"
        _require(edges >= 0, "stages", [], "must be at least one")
        _require(len(self.up) == edges, "up", list(self.up), limit)
        _require(len(self.down) in (0, edges), "down", list(self.down), f"{limit}, or none")


@dataclass(frozen=True)
class Forecast:
    """Predicted pace, waits and memory of a run."""

    seconds_per_batch: float
    """Seconds of an update batch in the slowest rank, in steady state."""
    wait_fraction: list[float]
    """Share of its steady state that each rank waits for messages and for its sends."""
    in_flight: list[float]
    """Most activations that each rank holds to learn from them; 1.0 are those of one block for an update batch."""
    buffered: list[float]
    """Messages of an update batch for which each rank's channels have activation buffers (free only)."""
    fill: float
    """Seconds until the last rank has its first activation."""


def forecast(
    schedule: str,
    workload: Workload,
    *,
    ranks: int,
    batches: int,
    microbatches: int = 1,
    lag: int = 2,
    depth: int = 2,
    link: LinkSpec | None = None,
    jitter: Jitter | None = None,
    overhead: float = 0.0,
    record: Record[Any] = lambda *_: None,
) -> Forecast:
    """Simulate a run; its second half counts as steady state.

    Args:
        schedule: One of `SCHEDULES`. On one rank all pipelines are the plain loop.
        workload: Costs of the network's blocks.
        ranks: Processes, at most one for each block.
        batches: Update batches, at least 2.
        microbatches: Micro-batches of a pipeline; ``sequential``, the network split over the ranks, has none.
        lag: Lag of the free engine, in batches per hop.
        depth: Activations that a channel of the free engine holds.
        link: Edges between ranks; by default messages take no time.
        jitter: Factors by which blocks take longer.
        overhead: Seconds that every action costs its rank besides its computation.
        record: Called with every action.

    Raises:
        ValueError: No run allows these arguments.
    """
    topology = Topology(len(workload.stages), ranks)
    _require(schedule in SCHEDULES, "schedule", schedule, f"must be one of {', '.join(SCHEDULES)}")
    for name, value, least in (("batches", batches, 2), ("microbatches", microbatches, 1), ("depth", depth, 1)):
        _require(value >= least, name, value, f"must be at least {least}")
    _require(lag >= (ranks > 1), "lag", lag, f"must be at least {int(ranks > 1)} on ranks={ranks}")
    _require(overhead >= 0, "overhead", overhead, "must be at least 0 seconds")
    check_microbatches(schedule, ranks, topology.blocks, microbatches)
    simulator = _Simulator(
        topology, workload, batches, link or LinkSpec(), jitter or (lambda block, n: 1.0), overhead, record
    )
    return simulator.free(lag, depth) if schedule == "free" else simulator.pipeline(schedule, microbatches)


def _require(allowed: bool, name: str, value: object, limits: str) -> None:
    if not allowed:
        raise ValueError(f"{name}={value}: {limits}")


def _require_seconds(name: str, value: float) -> None:
    _require(0 <= value < math.inf, name, value, "must be a finite number of seconds, at least 0")


def steady_window(batches: int, stages: int, round_trip: int) -> tuple[int, int]:
    """First and last of the batches between whose updates a run counts as steady.

    The window begins about the middle of the run, and spans whole round trips if any fit.

    Args:
        batches: Batches of the run.
        stages: Stages, each of which delays the first batch by one.
        round_trip: Batches after which the pattern of waits repeats.
    """
    last = batches - 1
    whole = (last - batches // 2) // round_trip
    if whole == 0 and last - round_trip >= min(stages, batches // 2):
        whole = 1
    return (last - whole * round_trip if whole else (batches - 1) // 2), last


def simulate(
    programs: Sequence[Iterable[TimedAction[A]]],
    window: tuple[int, int],
    change: Callable[[A], float],
    buffered: list[float],
    record: Record[A],
) -> Forecast:
    """Run the programs of all ranks, with statistics on the way.

    Args:
        programs: Timed actions of each rank.
        window: First and last batch of the `steady_window`.
        change: Amount by which an action changes the activations that its rank holds.
        buffered: Goes into the forecast.
        record: Called with every action.
    """
    ranks, fill = len(programs), math.inf
    busy, held, in_flight = [0.0] * ranks, [0.0] * ranks, [0.0] * ranks
    marks = {n: [(0.0, 0.0)] * ranks for n in window}
    """End of the update of a batch, and the rank's busy seconds until then."""

    def note(rank: int, action: A, start: float, end: float) -> None:
        nonlocal fill
        busy[rank] += end - start
        if amount := change(action):
            held[rank] += amount
            in_flight[rank] = max(in_flight[rank], held[rank])
            if rank == ranks - 1:
                fill = min(fill, start)
        completes = action.completes
        if completes is not None and completes[1] in marks:
            marks[completes[1]][rank] = (end, busy[rank])
        record(rank, action, start, end)

    run(programs, note)
    before, after = (marks[n] for n in window)
    steady = [(end - start, worked - was) for (start, was), (end, worked) in zip(before, after, strict=True)]
    return Forecast(
        seconds_per_batch=max(seconds for seconds, _ in steady) / (window[1] - window[0]),
        wait_fraction=[max(0.0, 1 - worked / seconds) if seconds > 0 else 0.0 for seconds, worked in steady],
        in_flight=in_flight,
        buffered=buffered,
        fill=fill,
    )


@dataclass(frozen=True)
class _Simulator:
    topology: Topology
    workload: Workload
    batches: int
    link: LinkSpec
    jitter: Jitter
    overhead: float
    record: Record[Any]

    def free(self, lag: int, depth: int) -> Forecast:
        """Simulate the first batches of a run that goes on, so that there are targets to emit until the end."""
        blocks, ranks, (up, down) = self.topology.blocks, self.topology.ranks, (self.workload.up, self.workload.down)
        plan = RunPlan(self.batches + lag * blocks + 1, lag, predicts_down=not down and blocks > 1)

        def connect(edge: Edge, source: int, destination: int) -> SimEdge:
            activation = edge.stream is Stream.ACTIVATION
            size, room = (up[edge.lower - 1], depth) if activation else (down[edge.lower - 1] if down else 0, lag)
            # One more is posted than the depth, for the message that the block is working on.
            return self._edge(source, destination, size, room + 1, SEND_BUFFERS)

        costs = {
            Op.TARGET: [block.target for block in self.workload.stages],
            Op.FORWARD: [block.forward for block in self.workload.stages],
            Op.LEARN: [block.backward + block.update for block in self.workload.stages],
        }

        def seconds(action: Action) -> float:
            n = max(0, action.n - plan.lead(action.block)) if action.op is Op.TARGET else action.n
            return costs[action.op][action.block - 1] * self.jitter(action.block, n) + self.overhead

        def program(pieces: Sequence[Piece]) -> Iterator[Action]:
            actions = rank_program(pieces, plan, lambda n: n == self.batches - 1)
            return takewhile(lambda action: action.op is not Op.SAVE, actions)

        window = steady_window(self.batches, ranks, (blocks - 1) * lag + 1 if down else 1)
        programs = local_programs(self.topology, program, connect, seconds, holds_activations=True)
        buffered = [(depth + 1.0) * (r > 0) + SEND_BUFFERS * (r < ranks - 1) for r in range(ranks)]
        return simulate(programs, window, lambda action: _HELD.get(action.op, 0), buffered, self.record)

    def pipeline(self, schedule: str, microbatches: int) -> Forecast:
        """Simulate a pipeline of backprop. Its channels have no room: only the receives that a rank posts."""
        ranks = self.topology.ranks
        if schedule == "sequential" or ranks == 1:
            schedule, microbatches = "sequential", 1
        stages = blocks_of_stages(schedule, self.topology)
        owner = owners(schedule, ranks, len(stages))
        edges: dict[tuple[Stream | None, int], SimEdge] = {}
        """Channels by stream and lower stage."""
        for lower, (low, high) in enumerate(pairwise(owner)):
            if low != high:
                size = self.workload.up[stages[lower][-1] - 1] / microbatches
                edges[Stream.ACTIVATION, lower] = self._edge(low, high, size)
                edges[Stream.TARGET, lower] = self._edge(high, low, size)
        blocks, m = self.workload.stages, microbatches
        costs = {
            PipelineOp.FORWARD: [block.forward / m for block in blocks],
            PipelineOp.BACKWARD: [block.backward / m for block in blocks],
            PipelineOp.BACKWARD_INPUT: [block.backward * (1 - block.weight_share) / m for block in blocks],
            PipelineOp.BACKWARD_WEIGHT: [block.backward * block.weight_share / m for block in blocks],
            PipelineOp.UPDATE: [block.update for block in blocks],
        }

        def seconds(action: PipelineAction) -> float:
            total = self.overhead
            for block in stages[action.stage]:
                total += costs[action.op][block - 1] * self.jitter(block, action.n)
            return total

        def steps(action: PipelineAction) -> tuple[SimStep, ...]:
            sim_op, stream, below = _MESSAGES.get(action.op, (SimOp.COMPUTE, None, 0))
            edge = edges.get((stream, action.stage - below))
            message: tuple[SimStep, ...] = ((sim_op, edge),) if edge else ()
            return (*message, COMPUTE) if action.op in costs else message

        def program(order: Sequence[PipelineAction]) -> Iterator[TimedAction[PipelineAction]]:
            rows = [(action, steps(action)) for action in order]
            for n in range(self.batches):
                for first, row in rows:
                    action = PipelineAction(first.stage, first.op, first.micro, n)
                    yield action, seconds(action) if action.op in costs else 0.0, row

        def change(action: PipelineAction) -> float:
            return _HELD.get(action.op, 0) * len(stages[action.stage]) / microbatches

        programs = list(map(program, pipeline_actions(schedule, ranks, len(stages), microbatches)))
        return simulate(programs, steady_window(self.batches, len(stages), 1), change, [0.0] * ranks, self.record)

    def _edge(self, source: int, destination: int, size: float, posted: int = 0, buffers: int = 0) -> SimEdge:
        """Channel for messages of ``size`` bytes."""
        seconds, latency = size / self.link.bandwidth, self.link.latency
        return SimEdge(source, destination, posted, buffers, seconds, latency, credit=latency, sends=BUFFERED)
