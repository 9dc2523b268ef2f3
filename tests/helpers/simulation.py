"""Timetables of simulated runs, and the free programs run against channels of any room and any times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from counterflow.schedule import Action, RunPlan, rank_program
from counterflow.schedule.event_sim import A, SimEdge, SimOp, local_programs, run
from counterflow.schedule.forecast import Forecast, Workload, forecast
from counterflow.topology import Piece, Stream, Topology

RENDEZVOUS = (SimOp.SEND, SimOp.WAIT_SEND)
"""The sender goes on when its message leaves."""


@dataclass(frozen=True)
class Span(Generic[A]):
    """Start and end of an action."""

    action: A
    start: float
    end: float


@dataclass(frozen=True)
class Timetable(Generic[A]):
    """Spans of each rank, in order."""

    spans: list[list[Span[A]]]

    @property
    def makespan(self) -> float:
        return max(spans[-1].end for spans in self.spans)

    def record(self, rank: int, action: A, start: float, end: float) -> None:
        self.spans[rank].append(Span(action, start, end))

    def seconds_per_batch(self, first: int, last: int) -> float:
        """Mean time from the update of batch ``first`` to that of batch ``last`` in the slowest block or stage."""
        ends = {span.action.completes: span.end for spans in self.spans for span in spans}
        places = {completed[0] for completed in ends if completed is not None}
        return max(ends[place, last] - ends[place, first] for place in places) / (last - first)


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
    scatter: float = 0.0
    reduce: float = 0.0
    gather: float = 0.0
    latency: float = 0.0


def block_program(block: int, plan: RunPlan) -> Iterator[Action]:
    """The program of one block, to be run by a process of its own."""
    return rank_program([Piece(block)], plan)


def simulate(
    topology: Topology, plan: RunPlan, room: Mapping[Stream, int], durations: Durations | None = None
) -> Timetable[Action]:
    """Run the free programs of all ranks to the end against bounded channels.

    An action waits for its message, runs, and then waits for room to send. A message takes a place of the channel from
    the start of its send until it is received.

    Args:
        topology: Blocks and ranks.
        plan: The run.
        room: Number of messages that a channel between two ranks holds, for each stream.
        durations: Times of actions and links.

    Raises:
        DeadlockError: The programs cannot end.
    """
    times = durations or Durations()
    timetable: Timetable[Action] = Timetable([[] for _ in range(topology.ranks)])
    programs = local_programs(
        topology,
        lambda pieces: rank_program(pieces, plan),
        lambda edge, source, destination: SimEdge(
            source, destination, posted=room[edge.stream], latency=times.latency, sends=RENDEZVOUS
        ),
        lambda action: float(getattr(times, action.op.name.lower())),
    )
    run(programs, timetable.record)
    return timetable


def forecast_timetable(
    schedule: str, workload: Workload, *, ranks: int, **options: Any
) -> tuple[Forecast, Timetable[Any]]:
    """A forecast, and the timetable of the run that it simulated."""
    timetable: Timetable[Any] = Timetable([[] for _ in range(ranks)])
    return forecast(schedule, workload, ranks=ranks, **options, record=timetable.record), timetable
