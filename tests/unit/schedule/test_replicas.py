"""Programs of several replicas: what copies of a block exchange, and that nobody waits for ever."""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from counterflow.message import MessageKind, Tag
from counterflow.schedule import Action, Op, RunPlan, rank_program
from counterflow.topology import Edge, Piece, Stream, Topology

Message = tuple[Edge, Tag]
SYNC_OPS = (Op.SCATTER, Op.REDUCE, Op.GATHER)


def drawn(plan: RunPlan, pieces: list[Piece], *ops: Op) -> str:
    return " ".join(str(action) for action in rank_program(pieces, plan) if action.op in ops)


def test_copies_meet_after_every_batch() -> None:
    plan = RunPlan(2, lag=1, replicas=2)
    assert drawn(plan, [Piece(1), Piece(1, 1)], Op.LEARN, *SYNC_OPS) == (
        "1L0 1:1L0 1X0 1:1X0 1Y0 1:1Y0 1G0 1:1G0 1L1 1:1L1 1X1 1:1X1 1Y1 1:1Y1 1G1 1:1G1"
    )


def test_what_copies_learn_takes_effect_later() -> None:
    """Every four batches, three batches later, and after the last one at once."""
    plan = RunPlan(10, lag=1, replicas=2, sync_every=4, sync_delay=3)
    assert drawn(plan, [Piece(1)], Op.LEARN, *SYNC_OPS) == (
        "1L0 1L1 1L2 1L3 1X3 1L4 1L5 1Y3 1L6 1G3 1L7 1X7 1L8 1L9 1Y7 1G7 1X9 1Y9 1G9"
    )


def test_one_replica_meets_nobody() -> None:
    assert drawn(RunPlan(3, lag=1), [Piece(1)], *SYNC_OPS) == ""


def test_the_first_replica_evaluates() -> None:
    plan = RunPlan(4, lag=1, evaluate_every=2, test_batches=2, replicas=2)
    assert drawn(plan, [Piece(1), Piece(1, 1)], Op.EVALUATE) == "1E1.0 1E1.1 1E3.0 1E3.1"
    assert drawn(plan, [Piece(1, 1)], Op.EVALUATE) == ""


@st.composite
def cases(draw: st.DrawFn) -> tuple[Topology, RunPlan]:
    blocks, replicas = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    every = draw(st.integers(1, 4))
    plan = RunPlan(
        draw(st.integers(1, 9)),
        lag=draw(st.integers(1, 3)),
        evaluate_every=draw(st.integers(0, 3)),
        test_batches=draw(st.integers(0, 2)),
        predicts_down=draw(st.booleans()),
        parts=draw(st.integers(1, 2)),
        replicas=replicas,
        sync_every=every,
        sync_delay=draw(st.integers(0, every - 1)),
    )
    plan = replace(plan, start=draw(st.integers(0, plan.batches - 1)))
    ranks = draw(st.integers(1, blocks * replicas))
    return Topology(blocks, ranks, replicas, draw(st.sampled_from(["pipeline", "replicas"]))), plan


def messages(action: Action, topology: Topology, plan: RunPlan) -> tuple[list[Message], list[Message]]:
    """Messages that ``action`` takes and sends between pieces."""
    k, n, r = action.block, action.n, action.replica
    peers = [peer for peer in range(topology.replicas) if peer != r]

    def up(tag: Tag) -> tuple[list[Message], list[Message]]:
        return [(Edge(Stream.ACTIVATION, k - 1, r), tag)], [(Edge(Stream.ACTIVATION, k, r), tag)]

    def down(tag: Tag) -> tuple[list[Message], list[Message]]:
        return [(Edge(Stream.TARGET, k, r), tag)], [(Edge(Stream.TARGET, k - 1, r), tag)]

    def others(kind: MessageKind, incoming: bool) -> list[Message]:
        edges = [Edge(Stream.SYNC, k, *((peer, r) if incoming else (r, peer))) for peer in peers]
        return [(edge, Tag(kind, n)) for edge in edges]

    taken: list[Message]
    sent: list[Message]
    match action.op:
        case Op.TARGET:
            taken, sent = down(Tag(MessageKind.TARGET, n))
        case Op.RESEND:
            taken, sent = [], down(Tag(MessageKind.TARGET, n))[1]
        case Op.FORWARD:
            taken, sent = up(Tag(MessageKind.ACTIVATION, n, action.e))
        case Op.EVALUATE:
            taken, sent = up(Tag(MessageKind.TEST, n, action.e))
        case Op.PREDICT:
            taken, sent = down(Tag(MessageKind.PREDICTION, n, action.e))
        case Op.SCATTER:
            taken, sent = [], others(MessageKind.SLICE, incoming=False)
        case Op.REDUCE:
            taken, sent = others(MessageKind.SLICE, incoming=True), others(MessageKind.SUM, incoming=False)
        case Op.GATHER:
            taken, sent = others(MessageKind.SUM, incoming=True), []
        case _:
            taken, sent = [], []
    edges = set(topology.edges())
    return [m for m in taken if m[0] in edges], [m for m in sent if m[0] in edges]


@example((Topology(blocks=4, ranks=5, replicas=3, inner="replicas"), RunPlan(2, lag=1, replicas=3)), 1)
@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(1, 3))
def test_all_ranks_come_to_the_end(case: tuple[Topology, RunPlan], depth: int) -> None:
    """With the least room that channels have, in an order in which every rank goes as far as it can, edges carry what
    the plan says, and nothing is left."""
    topology, plan = case
    room = {Stream.ACTIVATION: depth, Stream.TARGET: plan.lag, Stream.SYNC: 1}
    remote = set(topology.remote_edges())
    queues: dict[Edge, deque[Tag]] = defaultdict(deque)
    carried: dict[Edge, list[Tag]] = defaultdict(list)

    def run(rank: int) -> Iterator[None]:
        for action in rank_program(topology.pieces_of(rank), plan):
            taken, sent = messages(action, topology, plan)
            for edge, tag in taken:
                assert edge in remote or queues[edge], f"{action} takes from an empty channel of its own rank"
                while not queues[edge]:
                    yield
                assert queues[edge].popleft() == tag
            for edge, tag in sent:
                while edge in remote and len(queues[edge]) >= room[edge.stream]:
                    yield
                queues[edge].append(tag)
                carried[edge].append(tag)

    programs = {rank: run(rank) for rank in range(topology.ranks)}
    while programs:
        before = sum(map(len, carried.values())), sum(map(len, queues.values())), len(programs)
        for rank, program in list(programs.items()):
            if next(program, "end") == "end":
                del programs[rank]
        after = sum(map(len, carried.values())), sum(map(len, queues.values())), len(programs)
        assert before != after or not programs, "every rank waits"
    assert not any(queues.values())
    assert {edge: list(plan.messages(edge)) for edge in topology.edges()} == {e: carried[e] for e in topology.edges()}


@settings(deadline=None)
@given(cases())
def test_the_rest_after_a_cut_is_the_rest_of_the_whole(case: tuple[Topology, RunPlan]) -> None:
    """A piece that goes on from a checkpoint only sends again what was under way."""
    topology, plan = case
    whole = replace(plan, start=0)
    for piece in topology.pieces:
        rest = list(rank_program([piece], plan))
        met = plan.pending_meeting(plan.start)
        again = {(Op.SCATTER, met), *([(Op.REDUCE, met)] if met is not None else [])}
        done = list(rank_program([piece], whole, lambda n: n == plan.start - 1))
        new = [a for a in rest if a.op is not Op.RESEND and not ((a.op, a.n) in again and a in done)]
        if plan.start:
            assert [*[a for a in done if a.op is not Op.SAVE], *new] == list(rank_program([piece], whole))
