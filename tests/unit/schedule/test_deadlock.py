"""Deadlocks of bounded channels: none under an allowed configuration, and reported elsewhere."""

from dataclasses import replace

import pytest

from counterflow.schedule import RunPlan
from counterflow.schedule.event_sim import DeadlockError
from counterflow.topology import Stream, Topology
from tests.helpers.configs import configured
from tests.helpers.simulation import simulate


def reaches_the_end(topology: Topology, plan: RunPlan, depth: int, target_depth: int) -> bool:
    try:
        simulate(topology, plan, {Stream.ACTIVATION: depth, Stream.TARGET: target_depth})
    except DeadlockError:
        return False
    return True


def past_the_fill(blocks: int, lag: int, predicts_down: bool = False) -> RunPlan:
    """Long enough that every block is in steady state, with evaluations longer than any queue, also during the fill."""
    return RunPlan(lag * blocks + 10, lag, max(1, lag * blocks // 3), 7, predicts_down)


def check_all_columns(blocks: int, ranks: int) -> None:
    for lag in (1, 2, 3, 4):
        for depth in (1, 2, 3, 4, 5):
            plan = past_the_fill(blocks, lag)
            for start in (0, 1, lag * blocks, plan.batches - 1):
                rest = replace(plan, start=start)
                assert reaches_the_end(Topology(blocks, ranks), rest, depth, lag), (lag, depth, start)


@pytest.mark.parametrize(
    ("blocks", "ranks"), [(1, 1), (2, 2), (3, 3), (5, 5), (8, 8), (12, 12), (4, 2), (5, 3), (9, 4), (12, 5), (6, 1)]
)
def test_no_deadlock(blocks: int, ranks: int) -> None:
    check_all_columns(blocks, ranks)


@pytest.mark.parametrize(("blocks", "ranks"), [(2, 2), (8, 8), (9, 4)])
def test_no_deadlock_of_predictions(blocks: int, ranks: int) -> None:
    """Each block sends all test batches up before it looks for predictions, so any room is enough for either."""
    for depth in (1, 2):
        for room in (1, 2):
            assert reaches_the_end(Topology(blocks, ranks), past_the_fill(blocks, 2, True), depth, room), (depth, room)


@pytest.mark.parametrize(("blocks", "ranks"), [(2, 2), (8, 8), (9, 4)])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("lag", [1, 2, 3])
def test_gradients_need_room_for_the_lag(blocks: int, ranks: int, depth: int, lag: int) -> None:
    """A block takes the gradient of batch n ``lag`` forward passes after the block above sent it. With an evaluation
    between the two, longer than the channel, less room is too little; a real channel holds three more than that."""
    plan = RunPlan((lag + 1) * blocks + 10, lag, max(1, blocks // 2), 7, gradients_from=blocks)
    for room in range(1, lag + 1):
        assert reaches_the_end(Topology(blocks, ranks), plan, depth, room) == (room == lag), room


@pytest.mark.slow
@pytest.mark.parametrize("blocks", range(1, 25))
def test_no_deadlock_in_any_column(blocks: int) -> None:
    for ranks in {blocks, max(1, blocks - 1), (blocks + 1) // 2, (blocks + 3) // 4, 1}:
        check_all_columns(blocks, ranks)


@pytest.mark.parametrize(("blocks", "ranks"), [(2, 2), (3, 3), (5, 5), (4, 2), (7, 3)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_targets_need_room(blocks: int, ranks: int, depth: int) -> None:
    """The lower block gets no further than ``depth`` activations in the channel and one in its hands, so it has taken
    ``D + depth + 1`` targets when the upper one has ``D + lag + 1`` to send before its first forward: the rest has to
    fit into the channel."""
    for lag in range(1, 8):
        for room in range(1, lag + 1):
            ends = reaches_the_end(Topology(blocks, ranks), RunPlan(lag * blocks + 10, lag), depth, room)
            assert ends == (room >= lag - depth), (lag, room)


def test_deadlock_says_who_waits_for_what() -> None:
    """Lag 3, room for one message: block 1 has batch 0 in the channel and cannot send batch 1, so it takes targets 0
    and 1; target 2 is in the channel, and block 2 cannot send target 3."""
    with pytest.raises(DeadlockError, match=r"^rank 0 sends 1F1; rank 1 sends 2T3$"):
        simulate(Topology(2, 2), RunPlan(10, lag=3), {Stream.ACTIVATION: 1, Stream.TARGET: 1})


def test_deadlock_says_who_waits_for_a_message() -> None:
    with pytest.raises(DeadlockError, match=r"^rank 0 waits in 1T0; rank 1 sends 2T0$"):
        simulate(Topology(2, 2), RunPlan(10, lag=1), {Stream.ACTIVATION: 1, Stream.TARGET: 0})


def test_deadlock_leaves_out_who_is_done() -> None:
    """Block 1 is through with its only batch, but there is no room for the activation of block 2."""
    with pytest.raises(DeadlockError, match=r"^rank 0 sends 1F0; rank 1 waits in 2F0$"):
        simulate(Topology(2, 2), RunPlan(1, lag=1), {Stream.ACTIVATION: 0, Stream.TARGET: 1})


@pytest.mark.parametrize(("lag", "depth"), [(1, 0), (2, 1), (4, 3), (4, 1)])
def test_too_little_room_is_refused(lag: int, depth: int) -> None:
    with pytest.raises(
        ValueError, match=rf"engine\.target_depth={depth}: must be at least engine\.lag={lag}"
    ) as caught:
        configured(f"engine.lag={lag}", f"engine.target_depth={depth}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lag", "depth"), [("1", 1), ("3", 3), ("3", 5), ("exact", 1)])
def test_enough_room_is_accepted(lag: str, depth: int) -> None:
    assert configured(f"engine.lag={lag}", f"engine.target_depth={depth}").engine.target_depth == depth
