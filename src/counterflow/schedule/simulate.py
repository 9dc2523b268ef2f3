"""Runs the programs of all ranks of the free engine against bounded channels, without tensors or processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from counterflow.schedule.clock import Channel, Span, Timetable, run
from counterflow.schedule.local_schedule import Action, Op, rank_program
from counterflow.schedule.run_plan import RunPlan
from counterflow.schedule.steps import RENDEZVOUS, Endpoint, joints, steps
from counterflow.topology import Edge, Stream, Topology


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


def simulate(
    topology: Topology, plan: RunPlan, room: Mapping[Stream, int], durations: Durations | None = None
) -> Timetable[Action]:
    """Run all programs to the end; ``room`` is how many messages a channel between ranks holds, for each stream.

    Raises `DeadlockError` when they cannot end. An action waits for its message, runs, and then waits for room to send.
    A message takes a place from the start of its send until it is taken.
    """
    durations = durations or Durations()

    def crossing(edge: Edge, source: int, destination: int) -> Endpoint:
        channel = Channel(source, destination, posted=room[edge.stream], latency=durations.latency)
        return Endpoint(channel, RENDEZVOUS)

    edges = joints(topology, crossing)
    spans: list[list[Span[Action]]] = [[] for _ in range(topology.ranks)]
    run(
        [
            steps(rank_program(blocks, plan), blocks, edges, lambda action: durations.of(action.op))
            for blocks in map(topology.blocks_of, range(topology.ranks))
        ],
        lambda rank, action, start, end: spans[rank].append(Span(action, start, end)),
    )
    return Timetable(spans)
