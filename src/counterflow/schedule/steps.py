"""Programs of the free engine as steps against channels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from counterflow.schedule.clock import Channel, Part, Step, Verb
from counterflow.schedule.local_schedule import Action, Op
from counterflow.topology import Edge, Stream, Topology

INSIDE = (Verb.POST, Verb.SEND, Verb.SENT)
"""Between blocks of one process: a message is there at once, and nobody waits."""
RENDEZVOUS = (Verb.SEND, Verb.SENT)
"""The sender goes on when its message leaves."""
BUFFERED = (Verb.SENT, Verb.SEND)
"""The sender goes on when it has a free buffer."""


@dataclass(frozen=True)
class Endpoint:
    """An edge as its two ends use it."""

    channel: Channel
    sends: tuple[Verb, ...]


def joints(topology: Topology, crossing: Callable[[Edge, int, int], Endpoint]) -> dict[Edge, Endpoint]:
    """Of all edges; those between two ranks come from ``crossing``, which gets the edge, its source and destination."""
    owner = {block: rank for rank in range(topology.ranks) for block in topology.blocks_of(rank)}
    found = {}
    for edge in topology.edges():
        source, destination = owner[edge.source], owner[edge.destination]
        inside = source == destination
        found[edge] = Endpoint(Channel(source, source), INSIDE) if inside else crossing(edge, source, destination)
    return found


def steps(
    program: Iterable[Action],
    blocks: range,
    joints: Mapping[Edge, Endpoint],
    seconds: Callable[[Action], float],
    keeps: bool = False,
) -> Iterator[Step[Action]]:
    """The steps of ``program`` of a rank that owns ``blocks``.

    The room of a message is free again when it has been taken, or, of an activation that the block ``keeps``, when it
    has learnt from it.
    """
    parts = {(block, op.name): _parts(block, op, joints, keeps) for block in blocks for op in Op}
    for action in program:
        yield Step(action, seconds(action), parts[action.block, action.op.name])


def _parts(block: int, op: Op, joints: Mapping[Edge, Endpoint], keeps: bool) -> tuple[Part, ...]:
    up, down = (
        (joints.get(Edge(stream, block - 1)), joints.get(Edge(stream, block)))
        for stream in (Stream.ACTIVATION, Stream.TARGET)
    )
    below, above = up
    work: Part = (Verb.WORK, None)
    match op:
        case Op.FORWARD:
            return (*_take(below), *(() if keeps else _post(below)), work, *_send(above))
        case Op.EVALUATE:
            return (*_take(below), *_post(below), work, *_send(above))
        case Op.LEARN:
            return (work, *(_post(below) if keeps else ()))
        case Op.SAVE:
            return (work,)
        case Op.RESEND:
            return (work, *_send(down[0]))
        case Op.TARGET | Op.PREDICT | Op.BACKWARD:
            return (*_take(down[1]), *_post(down[1]), work, *_send(down[0]))


def _take(joint: Endpoint | None) -> tuple[Part, ...]:
    return () if joint is None else ((Verb.TAKE, joint.channel),)


def _post(joint: Endpoint | None) -> tuple[Part, ...]:
    return () if joint is None or joint.sends is INSIDE else ((Verb.POST, joint.channel),)


def _send(joint: Endpoint | None) -> tuple[Part, ...]:
    return () if joint is None else tuple((verb, joint.channel) for verb in joint.sends)
