"""Runs the programs of all ranks against bounded channels on a clock, without tensors or processes."""

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from counterflow.schedule.plan import Plan
from counterflow.schedule.program import Action, Op, rank_program
from counterflow.topology import Edge, Stream, Topology


class DeadlockError(Exception):
    """No rank can go on; the message says what each waits for."""


@dataclass(frozen=True)
class Durations:
    """Time of each action, and ``latency`` of a link between ranks, in any one unit."""

    target: float = 0.0
    forward: float = 1.0
    learn: float = 2.0
    evaluate: float = 1.0
    predict: float = 0.0
    backward: float = 2.0
    save: float = 0.0
    resend: float = 0.0
    latency: float = 0.0

    def of(self, op: Op) -> float:
        duration: float = getattr(self, op.name.lower())
        return duration


@dataclass(frozen=True)
class Span:
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timetable:
    """What each rank did when."""

    spans: list[list[Span]]
    topology: Topology

    @property
    def makespan(self) -> float:
        return max(spans[-1].end for spans in self.spans)

    def seconds_per_batch(self, first: int, last: int) -> float:
        """Mean time from the learning of batch ``first`` to that of batch ``last`` in the slowest block."""
        learnt: dict[tuple[int, int], float] = {
            (span.action.block, span.action.n): span.end
            for spans in self.spans
            for span in spans
            if span.action.op is Op.LEARN
        }
        blocks = range(1, self.topology.blocks + 1)
        return max(learnt[k, last] - learnt[k, first] for k in blocks) / (last - first)


@dataclass
class _Channel:
    """A FIFO of arrival times. A message takes a place from the start of its send until it is taken."""

    room: int
    latency: float
    arrivals: deque[float] = field(default_factory=deque)
    freed: deque[float] = field(default_factory=deque)
    sent: int = 0

    def ready_to_send(self) -> float | None:
        """When the next message finds a place; None if that is not known yet."""
        if self.sent < self.room:
            return 0.0
        return self.freed[0] if self.freed else None

    def send(self, now: float) -> None:
        if self.sent >= self.room:
            self.freed.popleft()
        self.sent += 1
        self.arrivals.append(now + self.latency)

    def take(self, now: float) -> None:
        self.arrivals.popleft()
        self.freed.append(now)


def simulate(
    topology: Topology, plan: Plan, room: Mapping[Stream, int], durations: Durations | None = None
) -> Timetable:
    """Run all programs to the end; ``room`` is how many messages a channel between ranks holds, for each stream.

    Raises `DeadlockError` when they cannot end. An action waits for its message, runs, and then waits for room to send.
    """
    durations = durations or Durations()
    channels = {edge: _Channel(sys.maxsize, 0.0) for edge in topology.edges()}  # inside a process they never wait
    channels |= {edge: _Channel(room[edge.stream], durations.latency) for edge in topology.crossing()}
    programs = [rank_program(topology.blocks_of(rank), plan) for rank in range(topology.ranks)]
    current = [next(program, None) for program in programs]
    clock = [0.0] * topology.ranks
    running: list[float | None] = [None] * topology.ranks
    """End of the current action if it has taken its message and waits for room."""
    spans: list[list[Span]] = [[] for _ in programs]

    def edges(action: Action) -> tuple[_Channel | None, _Channel | None]:
        if action.op in (Op.LEARN, Op.SAVE):
            return None, None
        if action.op is Op.RESEND:
            return None, channels[Edge(Stream.TARGET, action.block - 1)]
        below, above = Edge(action.stream, action.block - 1), Edge(action.stream, action.block)
        taken, sent = (above, below) if action.stream is Stream.TARGET else (below, above)
        return channels.get(taken), channels.get(sent)

    def step(rank: int) -> bool:
        """Run rank's current action if it can run, and say so."""
        action = current[rank]
        if action is None:
            return False
        source, sink = edges(action)
        end = running[rank]
        if end is None:
            start = clock[rank]
            if source is not None:
                if not source.arrivals:
                    return False
                start = max(start, source.arrivals[0])
                source.take(start)
            end = start + durations.of(action.op)
            spans[rank].append(Span(action, start, end))
        running[rank] = end
        if sink is not None:
            place = sink.ready_to_send()
            if place is None:
                return False
            end = max(end, place)
            sink.send(end)
        clock[rank] = end
        running[rank] = None
        current[rank] = next(programs[rank], None)
        return True

    moved = True
    while moved:
        moved = False
        for rank in range(topology.ranks):
            while step(rank):
                moved = True
    if any(action is not None for action in current):
        stuck = (
            f"rank {rank} {'sends' if running[rank] is not None else 'waits in'} {action}"
            for rank, action in enumerate(current)
            if action is not None
        )
        raise DeadlockError("; ".join(stuck))
    return Timetable(spans, topology)
