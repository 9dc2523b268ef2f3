"""Discrete-event simulator shared by all schedules: ranks run actions over channels, without tensors or processes.

No program asks "is something there?", so events need no global order. A rank runs until it needs the time of an
arrival, or of the end of a send, that is not known yet. It goes on when the rank at the other end has made it known.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from enum import IntEnum
from typing import TypeVar

from counterflow.schedule.local_schedule import Action, Op
from counterflow.schedule.pipeline_schedules import PipelineAction
from counterflow.topology import Edge, Piece, Stream, Topology


class DeadlockError(Exception):
    """No rank can go on; the message says what each of them waits for."""


A = TypeVar("A", Action, PipelineAction)
Record = Callable[[int, A, float, float], object]
"""Called with rank, action, start and end."""


class SimOp(IntEnum):
    """Operation of a rank, on a channel except for `COMPUTE`."""

    COMPUTE = 0
    RECEIVE = 1
    """Wait until the next message is here."""
    POST_RECEIVE = 2
    """Post a receive for a further message."""
    SEND = 3
    """Hand over the next message; it leaves when a receive is posted."""
    WAIT_SEND = 4
    """Wait until the oldest send that was not waited for yet is over."""


LOCAL = (SimOp.POST_RECEIVE, SimOp.SEND, SimOp.WAIT_SEND)
"""A message within a process arrives at once, and its sender does not wait."""
BUFFERED = (SimOp.WAIT_SEND, SimOp.SEND)
"""The sender goes on when it has a free buffer."""


@dataclass(eq=False, slots=True)
class SimEdge:
    """FIFO channel from rank ``source`` to rank ``destination``; times are in any one unit.

    A message leaves when it has been handed over, the sender knows of a receive for it, and the message before it has
    left. It occupies the link for ``seconds``; then its send is over. It arrives after ``latency`` more. The sender
    knows of a receive ``credit`` after it was posted.

    Args:
        posted: Number of receives that are posted from the start.
        buffers: Number of sends that may be waited for before any message was sent.
        sends: Operations by which an action of the free schedule sends a message.
    """

    source: int
    destination: int
    posted: InitVar[int] = 0
    buffers: InitVar[int] = 0
    seconds: float = 0.0
    latency: float = 0.0
    credit: float = 0.0
    sends: tuple[SimOp, ...] = LOCAL
    _free: float = 0.0
    """When the link has sent everything."""
    _handed: deque[float] = field(default_factory=deque)
    """When messages without a receive were handed over."""
    _posted: deque[float] = field(init=False)
    """When the sender knows of receives without a message."""
    arrivals: deque[float] = field(default_factory=deque)
    """Arrival times of messages that were not received yet."""
    ends: deque[float] = field(init=False)
    """Ends of sends that were not waited for yet."""

    def __post_init__(self, posted: int, buffers: int) -> None:
        self._posted = deque([self.credit] * posted)
        self.ends = deque([0.0] * buffers)

    def send(self, now: float) -> int | None:
        """Hand over a message; return the rank at the other end if its arrival is known by that."""
        return self._meet(now, self._handed, self._posted, self.destination)

    def post(self, now: float) -> int | None:
        """Post a receive; return the rank at the other end if the end of its send is known by that."""
        return self._meet(now + self.credit, self._posted, self._handed, self.source)

    def _meet(self, now: float, own: deque[float], others: deque[float], peer: int) -> int | None:
        if not others:
            own.append(now)
            return None
        end = self._free = max(now, others.popleft(), self._free) + self.seconds
        self.ends.append(end)
        self.arrivals.append(end + self.latency)
        return peer


SimStep = tuple[SimOp, SimEdge | None]
"""Operation, and its channel; None for `SimOp.COMPUTE`."""
COMPUTE: SimStep = (SimOp.COMPUTE, None)


TimedAction = tuple[A, float, tuple[SimStep, ...]]
"""Action, the seconds that it computes, and its steps in order."""


def run(programs: Sequence[Iterable[TimedAction[A]]], record: Record[A]) -> None:
    """Run the programs of all ranks to the end, all from time 0.

    Raises:
        DeadlockError: The programs cannot end.
    """
    RECEIVE, POST_RECEIVE, WAIT_SEND = SimOp.RECEIVE, SimOp.POST_RECEIVE, SimOp.WAIT_SEND
    waiting: list[tuple[SimEdge, SimOp, A] | None] = [None] * len(programs)
    """The wait of a rank: channel, operation and its action; None for a rank that can go on or has ended."""
    ready = deque(range(len(programs)))

    def process(rank: int, program: Iterable[TimedAction[A]]) -> Iterator[tuple[SimEdge, SimOp, A]]:
        now = 0.0
        for action, seconds, steps in program:
            for op, edge in steps:
                if edge is None:
                    record(rank, action, now, now + seconds)
                    now += seconds
                elif op is RECEIVE or op is WAIT_SEND:
                    known = edge.arrivals if op is RECEIVE else edge.ends
                    if not known:
                        yield edge, op, action
                    then = known.popleft()
                    if then > now:
                        now = then
                else:
                    peer = edge.post(now) if op is POST_RECEIVE else edge.send(now)
                    if peer is not None and (wait := waiting[peer]) is not None and wait[0] is edge:
                        waiting[peer] = None
                        ready.append(peer)

    processes = [process(rank, program) for rank, program in enumerate(programs)]
    while ready:
        rank = ready.popleft()
        waiting[rank] = next(processes[rank], None)
    if any(waiting):
        raise DeadlockError(
            "; ".join(
                f"rank {rank} {'waits in' if wait[1] is RECEIVE else 'sends'} {wait[2]}"
                for rank, wait in enumerate(waiting)
                if wait is not None
            )
        )


def local_programs(
    topology: Topology,
    program: Callable[[Sequence[Piece]], Iterable[Action]],
    connect: Callable[[Edge, int, int], SimEdge],
    seconds: Callable[[Action], float],
    holds_activations: bool = False,
) -> list[Iterator[TimedAction[Action]]]:
    """Programs of all ranks of the free engine.

    Args:
        topology: Blocks and ranks.
        program: Actions of a rank that owns these blocks, of one pipeline.
        connect: Channel of an edge between two ranks, from the edge, its source and its destination.
        seconds: Time that an action computes.
        holds_activations: A receive is posted again when a block has learnt from the activation, and not already when
            it has received the activation.
    """
    owner = {piece: rank for rank in range(topology.ranks) for piece in topology.pieces_of(rank)}
    edges: dict[Edge, SimEdge] = {}
    for edge in topology.edges():
        source, destination = owner[edge.source], owner[edge.destination]
        edges[edge] = SimEdge(source, source) if source == destination else connect(edge, source, destination)

    def timed(pieces: Sequence[Piece]) -> Iterator[TimedAction[Action]]:
        steps = {(block, op.name): _steps(block, op, edges, holds_activations) for block, _ in pieces for op in Op}
        return ((a, seconds(a), steps[a.block, a.op.name]) for a in program(pieces))

    return [timed(topology.pieces_of(rank)) for rank in range(topology.ranks)]


def _steps(block: int, op: Op, edges: Mapping[Edge, SimEdge], holds_activations: bool) -> tuple[SimStep, ...]:
    up = op in (Op.FORWARD, Op.EVALUATE, Op.LEARN)
    stream, source, sink = (Stream.ACTIVATION, block - 1, block) if up else (Stream.TARGET, block, block - 1)
    incoming, outgoing = edges.get(Edge(stream, source)), edges.get(Edge(stream, sink))
    receive: list[SimStep] = [] if incoming is None else [(SimOp.RECEIVE, incoming)]
    post: list[SimStep] = [(SimOp.POST_RECEIVE, edge) for _, edge in receive if edge and edge.sends is not LOCAL]
    send: list[SimStep] = [] if outgoing is None else [(sim_op, outgoing) for sim_op in outgoing.sends]
    match op:
        case Op.LEARN:
            return (COMPUTE, *(post if holds_activations else ()))
        case Op.SAVE:
            return (COMPUTE,)
        case Op.RESEND:
            return (COMPUTE, *send)
        case Op.FORWARD if holds_activations:
            return (*receive, COMPUTE, *send)
        case _:
            return (*receive, *post, COMPUTE, *send)
