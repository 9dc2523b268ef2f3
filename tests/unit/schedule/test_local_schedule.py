"""The programs of blocks: timetables of small columns, and docs/concepts.md, Semantics, for others.

An action is (block, operation, batch): ``2T3`` is block 2 that takes the target of batch 3 and sends the one below,
``2F3`` forward, ``2L3`` learn, ``2E3.0`` test batch 0 after batch 3, ``2P3.0`` its predictions on their way down,
``2B3`` the gradient of batch 3 on its way down, and the update.
"""

from collections import Counter, defaultdict, deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.message import MessageKind, Tag
from counterflow.schedule import Action, Op, RunPlan, rank_program
from counterflow.topology import Edge, Piece, Stream, Topology, column
from tests.helpers.simulation import block_program


def timetable(*rows: str) -> list[str]:
    """Rows of a drawing as one list; the bars only show where batches begin."""
    return [action for row in rows for action in row.replace("|", " ").split()]


def drawn(actions: object) -> list[str]:
    return [str(action) for action in actions]  # type: ignore[attr-defined]


#               (block, lag, batches): prologue | batch 0 | batch 1 | ..
BLOCKS = {
    (1, 1, 3): " | 1T0 1F0 1L0 | 1T1 1F1 1L1 | 1T2 1F2 1L2",
    (1, 2, 3): " | 1T0 1F0 1L0 | 1T1 1F1 1L1 | 1T2 1F2 1L2",
    (2, 1, 3): "2T0 | 2T1 2F0 2L0 | 2T2 2F1 2L1 | 2F2 2L2",
    (2, 2, 3): "2T0 2T1 | 2T2 2F0 2L0 | 2F1 2L1 | 2F2 2L2",
    (2, 2, 5): "2T0 2T1 | 2T2 2F0 2L0 | 2T3 2F1 2L1 | 2T4 2F2 2L2 | 2F3 2L3 | 2F4 2L4",
    (3, 1, 4): "3T0 3T1 | 3T2 3F0 3L0 | 3T3 3F1 3L1 | 3F2 3L2 | 3F3 3L3",
    (3, 2, 5): "3T0 3T1 3T2 3T3 | 3T4 3F0 3L0 | 3F1 3L1 | 3F2 3L2 | 3F3 3L3 | 3F4 3L4",
    (3, 2, 3): "3T0 3T1 3T2 | 3F0 3L0 | 3F1 3L1 | 3F2 3L2",  # a run shorter than its prologue would be
    (2, 0, 2): " | 2T0 2F0 2L0 | 2T1 2F1 2L1",
}


@pytest.mark.parametrize(("block", "lag", "batches"), BLOCKS)
def test_program_of_a_block(block: int, lag: int, batches: int) -> None:
    expected = timetable(BLOCKS[block, lag, batches])
    assert drawn(block_program(block, RunPlan(batches, lag))) == expected


def test_evaluation_follows_its_batch() -> None:
    plan = RunPlan(batches=3, lag=1, evaluate_every=2, test_batches=2)
    assert drawn(block_program(1, plan)) == timetable(
        "| 1T0 1F0 1L0",
        "| 1T1 1F1 1L1 | 1E1.0 1E1.1",
        "| 1T2 1F2 1L2 | 1E2.0 1E2.1",
    )
    assert drawn(block_program(2, plan)) == timetable(
        "  2T0",
        "| 2T1 2F0 2L0",
        "| 2T2 2F1 2L1 | 2E1.0 2E1.1",
        "|     2F2 2L2 | 2E2.0 2E2.1",
    )


def test_three_blocks_of_one_rank_lag_1() -> None:
    plan = RunPlan(batches=3, lag=1, evaluate_every=2, test_batches=1)
    assert drawn(rank_program(column(range(1, 4)), plan)) == timetable(
        "3T0 2T0 3T1                                     ",  # a wave from the top
        "| 1T0 1F0 1L0 | 2T1 2F0 2L0 | 3T2 3F0 3L0       ",
        "| 1T1 1F1 1L1 | 2T2 2F1 2L1 |     3F1 3L1       ",
        "| 1E1.0       | 2E1.0       | 3E1.0             ",
        "| 1T2 1F2 1L2 |     2F2 2L2 |     3F2 3L2       ",
        "| 1E2.0       | 2E2.0       | 3E2.0             ",
    )


def test_two_blocks_of_one_rank_lag_2() -> None:
    assert drawn(rank_program(column(range(2, 4)), RunPlan(batches=6, lag=2))) == timetable(
        "3T0 2T0 3T1 2T1 3T2 3T3   ",
        "| 2T2 2F0 2L0 | 3T4 3F0 3L0",
        "| 2T3 2F1 2L1 | 3T5 3F1 3L1",
        "| 2T4 2F2 2L2 |     3F2 3L2",
        "| 2T5 2F3 2L3 |     3F3 3L3",
        "|     2F4 2L4 |     3F4 3L4",
        "|     2F5 2L5 |     3F5 3L5",
    )


def test_exact_is_the_locked_algorithm() -> None:
    plan = RunPlan(batches=2, lag=0, test_batches=1)
    assert drawn(rank_program(column(range(1, 4)), plan)) == timetable(
        "3T0 2T0 1T0 | 1F0 1L0 | 2F0 2L0 | 3F0 3L0",
        "3T1 2T1 1T1 | 1F1 1L1 | 2F1 2L1 | 3F1 3L1",
        "1E1.0 2E1.0 3E1.0",
    )


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_predictions_that_come_down(lag: int) -> None:
    """No targets, so no lag and nothing ahead of time; predictions go down when all test batches have gone up."""
    plan = RunPlan(batches=3, lag=lag, evaluate_every=2, test_batches=2, predicts_down=True)
    assert drawn(block_program(2, plan)) == timetable(
        "2F0 2L0",
        "| 2F1 2L1 | 2E1.0 2E1.1 | 2P1.0 2P1.1",
        "| 2F2 2L2 | 2E2.0 2E2.1 | 2P2.0 2P2.1",
    )
    assert drawn(rank_program(column(range(1, 3)), RunPlan(2, lag, test_batches=2, predicts_down=True))) == timetable(
        "1F0 1L0 2F0 2L0",
        "1F1 1L1 2F1 2L1",
        "1E1.0 2E1.0 | 1E1.1 2E1.1",
        "2P1.0 1P1.0 | 2P1.1 1P1.1",
    )


def test_gradients_that_nobody_waits_for() -> None:
    """Three blocks: four batches are in flight at the bottom, two in the middle, none at the top."""
    plan = RunPlan(batches=6, lag=2, test_batches=1, evaluate_every=2, gradients_from=3)
    assert drawn(block_program(3, plan)) == timetable(
        "3F0 3B0 | 3F1 3B1 3E1.0 | 3F2 3B2 | 3F3 3B3 3E3.0 | 3F4 3B4 | 3F5 3B5 3E5.0"
    )
    assert drawn(block_program(2, plan)) == timetable(
        "2F0 | 2F1 2E1.0 | 2F2 2B0 | 2F3 2B1 2E3.0 | 2F4 2B2 | 2F5 2B3 | 2B4 | 2B5 2E5.0"
    )
    assert drawn(block_program(1, plan)) == timetable(
        "1F0 | 1F1 1E1.0 | 1F2 | 1F3 1E3.0 | 1F4 1B0 | 1F5 1B1 | 1B2 | 1B3 | 1B4 | 1B5 1E5.0"
    )
    assert drawn(rank_program(column(range(2, 4)), RunPlan(batches=3, lag=2, gradients_from=3))) == timetable(
        "2F0 3F0 3B0 | 2F1 3F1 3B1 | 2F2 3F2 2B0 3B2 | 2B1 | 2B2"
    )


plans = st.builds(
    RunPlan,
    batches=st.integers(1, 30),
    lag=st.integers(1, 5),
    evaluate_every=st.integers(0, 7),
    test_batches=st.integers(0, 3),
    predicts_down=st.booleans(),
    validation_batches=st.integers(0, 2),
    checkpoint_every=st.integers(0, 6),
)


@given(plans, st.integers(1, 8))
def test_contract_of_a_block(plan: RunPlan, block: int) -> None:
    """docs/concepts.md, Semantics, read off the actions of one block."""
    distance = plan.lag * (block - 1)
    updates = 0
    targets: list[int] = []
    forwards: list[int] = []
    evaluated: list[tuple[int, int]] = []
    predicted: list[tuple[int, int]] = []
    saved: list[int] = []
    for action in block_program(block, plan):
        assert action.block == block
        match action.op:
            case Op.TARGET:
                # b(n + D_k) leaves after exactly n updates; the first D_k before batch 0.
                assert updates == max(0, action.n - distance)
                targets.append(action.n)
            case Op.FORWARD:
                # a forward block is never stale
                assert action.n == updates
                assert len(forwards) == updates
                # what batch n brings down has left before its forward: up to n + D_k, or to the end of the run
                assert plan.predicts_down or len(targets) == min(action.n + distance + 1, plan.batches)
                forwards.append(action.n)
            case Op.LEARN:
                assert action.n == updates == forwards[-1]
                assert plan.predicts_down or action.n in targets
                updates += 1
            case Op.EVALUATE:
                assert action.n == updates - 1
                evaluated.append((action.n, action.e))
            case Op.BACKWARD:
                pytest.fail("there are no gradients in this plan")
            case Op.PREDICT:
                assert action.n == updates - 1
                assert len([n for n, _ in evaluated if n == action.n]) == len(plan.evaluation(action.n))
                assert (action.n, action.e) in evaluated
                predicted.append((action.n, action.e))
            case Op.SAVE:
                # after everything that batch n brings, and before anything of the next one
                assert action.n == updates - 1
                assert len(evaluated) == sum(len(plan.evaluation(n)) for n in range(updates))
                saved.append(action.n)
            case Op.RESEND:
                pytest.fail("there is nothing to go on from")
    everything = list(range(plan.batches))
    # each once, in order, and none past the last batch
    assert targets == ([] if plan.predicts_down else everything)
    assert forwards == everything
    assert updates == plan.batches
    between = plan.validation_batches or plan.test_batches
    after = [n for n in everything[:-1] if plan.evaluate_every and (n + 1) % plan.evaluate_every == 0]
    batches = dict.fromkeys(after, between) | {everything[-1]: plan.validation_batches + plan.test_batches}
    assert evaluated == [(n, e) for n, count in batches.items() for e in range(count)]
    assert predicted == (evaluated if plan.predicts_down else [])
    every = plan.checkpoint_every
    assert saved == ([n for n in everything if (n + 1) % every == 0 or n == everything[-1]] if every else [])


@given(plans, st.integers(1, 8), st.data())
def test_contract_of_a_block_with_gradients(plan: RunPlan, top: int, data: st.DataObject) -> None:
    """Forward never waits: the gradient of batch n comes back after lag (N - k) more batches have gone up."""
    block = data.draw(st.integers(1, top))
    late = plan.lag * (top - block)
    plan = replace(plan, predicts_down=False, gradients_from=top)
    forwards = updates = 0
    evaluated: list[tuple[int, int]] = []
    for action in block_program(block, plan):
        match action.op:
            case Op.FORWARD:
                assert action.n == forwards
                assert updates == max(0, forwards - late)
                forwards += 1
            case Op.BACKWARD:
                assert action.n == updates
                assert forwards == min(updates + late + 1, plan.batches)
                updates += 1
            case Op.EVALUATE:
                assert action.n == forwards - 1
                assert updates == (plan.batches if forwards == plan.batches else max(0, forwards - late))
                evaluated.append((action.n, action.e))
            case Op.SAVE:
                assert action.n == forwards - 1
                assert updates == (plan.batches if forwards == plan.batches else max(0, forwards - late))
            case _:
                pytest.fail(f"{action} has no place here")
    assert forwards == updates == plan.batches
    # every evaluation in its order; where it belongs is counted above
    assert evaluated == [(tag.n, tag.e) for tag in plan.activations() if tag.kind is MessageKind.TEST]


@st.composite
def columns(draw: st.DrawFn) -> tuple[Topology, RunPlan]:
    blocks = draw(st.integers(1, 8))
    plan = draw(plans)
    if not plan.predicts_down and draw(st.booleans()):
        plan = replace(plan, predicts_down=False, gradients_from=blocks)
    return Topology(blocks, draw(st.integers(1, blocks))), begun(draw, plan)


def begun(draw: st.DrawFn, plan: RunPlan) -> RunPlan:
    """``plan``, or its rest after a checkpoint."""
    return replace(plan, start=draw(st.integers(0, plan.batches - 1))) if draw(st.booleans()) else plan


@st.composite
def exact_columns(draw: st.DrawFn) -> tuple[Topology, RunPlan]:
    plan = draw(plans)
    exact = begun(draw, replace(plan, lag=0))
    return Topology(draw(st.integers(1, 8)), 1), exact


@given(columns() | exact_columns())
def test_a_rank_runs_the_programs_of_its_blocks(case: tuple[Topology, RunPlan]) -> None:
    topology, plan = case
    for rank in range(topology.ranks):
        blocks = topology.blocks_of(rank)
        merged = list(rank_program(column(blocks), plan))
        assert {action.block for action in merged} <= set(blocks)
        for block in blocks:
            assert [action for action in merged if action.block == block] == list(block_program(block, plan))


def taken_and_sent(action: Action, plan: RunPlan) -> tuple[tuple[Edge, Tag] | None, tuple[Edge, Tag] | None]:
    """Messages that ``action`` takes and sends, those at both ends of the network included."""
    k, n = action.block, action.n
    match action.op:
        case Op.TARGET:
            tag, source, sink = Tag(MessageKind.TARGET, n), Edge(Stream.TARGET, k), Edge(Stream.TARGET, k - 1)
        case Op.FORWARD:
            tag, source, sink = (
                Tag(MessageKind.ACTIVATION, n),
                Edge(Stream.ACTIVATION, k - 1),
                Edge(Stream.ACTIVATION, k),
            )
        case Op.EVALUATE:
            tag, source, sink = (
                Tag(MessageKind.TEST, n, action.e),
                Edge(Stream.ACTIVATION, k - 1),
                Edge(Stream.ACTIVATION, k),
            )
        case Op.PREDICT:
            tag, source, sink = (
                Tag(MessageKind.PREDICTION, n, action.e),
                Edge(Stream.TARGET, k),
                Edge(Stream.TARGET, k - 1),
            )
        case Op.BACKWARD:
            tag, source, sink = Tag(MessageKind.GRADIENT, n), Edge(Stream.TARGET, k), Edge(Stream.TARGET, k - 1)
        case Op.RESEND:
            kind = MessageKind.GRADIENT if plan.gradients_from else MessageKind.TARGET
            return None, (Edge(Stream.TARGET, k - 1), Tag(kind, n))
        case _:
            return None, None
    return (source, tag), (sink, tag)


@given(columns() | exact_columns())
def test_a_rank_never_waits_for_itself(case: tuple[Topology, RunPlan]) -> None:
    """Between blocks of one rank, what is taken has been sent before, and nothing is left at the end."""
    topology, plan = case
    for rank in range(topology.ranks):
        blocks = topology.blocks_of(rank)
        inside = {Edge(stream, lower) for stream in (Stream.ACTIVATION, Stream.TARGET) for lower in blocks[:-1]}
        queues: dict[Edge, deque[Tag]] = defaultdict(deque)
        for action in rank_program(column(blocks), plan):
            taken, sent = taken_and_sent(action, plan)
            if taken and taken[0] in inside:
                edge, tag = taken
                assert queues[edge], f"{action} takes from an empty channel"
                assert queues[edge].popleft() == tag
            if sent and sent[0] in inside:
                queues[sent[0]].append(sent[1])
        assert not any(queues.values())


@given(columns() | exact_columns())
def test_an_edge_carries_what_the_plan_says(case: tuple[Topology, RunPlan]) -> None:
    topology, plan = case
    sent: dict[Edge, list[Tag]] = defaultdict(list)
    taken: dict[Edge, list[Tag]] = defaultdict(list)
    for rank in range(topology.ranks):
        for action in rank_program(topology.pieces_of(rank), plan):
            for messages, end in zip((taken, sent), taken_and_sent(action, plan), strict=True):
                if end:
                    messages[end[0]].append(end[1])
    for edge in topology.edges():
        assert list(plan.messages(edge)) == sent[edge] == taken[edge]
        assert max(Counter(sent[edge]).values(), default=1) == 1
    # the ends of the column: what enters there is the same
    assert taken[Edge(Stream.ACTIVATION, 0)] == list(plan.activations())
    assert taken[Edge(Stream.TARGET, topology.blocks)] == list(plan.targets(topology.blocks))


@settings(max_examples=30, deadline=None)
@given(exact_columns())
def test_exact_targets_are_not_old(case: tuple[Topology, RunPlan]) -> None:
    """With lag 0 the targets of batch n come down with parameters after exactly n updates, in every block."""
    topology, plan = case
    updates: Counter[int] = Counter(dict.fromkeys(topology.blocks_of(0), plan.start))
    for action in rank_program(topology.pieces_of(0), plan):
        match action.op:
            case Op.TARGET:
                assert [updates[block] for block in topology.blocks_of(0)] == [action.n] * topology.blocks
            case Op.FORWARD:
                assert updates[action.block] == action.n
            case Op.LEARN:
                updates[action.block] += 1
    assert all(updates[block] == plan.batches for block in topology.blocks_of(0))


@given(columns(), st.data())
def test_the_rest_after_a_cut_is_the_rest_of_the_whole(case: tuple[Topology, RunPlan], data: st.DataObject) -> None:
    """Cut anywhere, and gone on from there by any number of ranks, each block does what it would have done."""
    topology, plan = case
    plan = replace(plan, start=0)
    start = data.draw(st.integers(1, plan.batches - 1)) if plan.batches > 1 else 0
    for block in range(1, topology.blocks + 1):
        halted = list(rank_program([Piece(block)], plan, lambda n: n == start - 1))
        rest = list(block_program(block, replace(plan, start=start)))
        again = [action for action in rest if action.op is not Op.RESEND]
        if start:
            assert halted[-1] == Action(Op.SAVE, block, start - 1)
            extra = [] if plan.saves_after(start - 1) else [halted[-1]]
            assert [a for a in [*halted, *again] if a not in extra] == list(block_program(block, plan))


@given(columns())
def test_what_is_sent_again_is_what_the_channel_held(case: tuple[Topology, RunPlan]) -> None:
    """Everything that the block above had sent when both had finished the same batch, and that the one below had not
    taken: never more than a sender keeps."""
    topology, plan = case
    whole = replace(plan, start=0)
    for block in range(2, topology.blocks + 1):
        sent, taken = (
            [
                action.n
                for action in rank_program([Piece(k)], whole, lambda n: n == plan.start - 1)
                if action.op in (Op.TARGET, Op.BACKWARD)
            ]
            for k in (block, block - 1)
        )
        again = [a.n for a in block_program(block, plan) if a.op is Op.RESEND]
        assert again == (sent[len(taken) :] if plan.start else [])
        assert len(again) <= plan.max_in_flight
