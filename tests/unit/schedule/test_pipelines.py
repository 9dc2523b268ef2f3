"""The orders of pipelines: drawn as timetables for small ones, and held against those of torch for others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import schedules

from counterflow.schedule.pipelines import Move, Task, owners, tasks

COMPUTES = "FBIWU"


def computed(order: list[Task]) -> str:
    """The tasks of a rank that compute, without their stage."""
    return " ".join(str(task)[1:] for task in order if task.move.value in COMPUTES)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("gpipe", ["F0 F1 F2 F3 B0 B1 B2 B3 U"] * 3),
        (
            "1f1b",
            [
                "F0 F1 F2 B0 F3 B1 B2 B3 U",
                "F0 F1 B0 F2 B1 F3 B2 B3 U",
                "F0 B0 F1 B1 F2 B2 F3 B3 U",
            ],
        ),
        (
            "zbh1",
            [
                "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3 U",
                "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3 U",
                "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3 U",
            ],
        ),
    ],
)
def test_three_stages_four_micro_batches(schedule: str, expected: list[str]) -> None:
    assert [computed(order) for order in tasks(schedule, 3, 3, 4)] == expected


def test_messages_of_1f1b() -> None:
    """A send one way and a receive the other way are posted together, and both waited for."""
    bottom, top = ([str(task) for task in order] for order in tasks("1f1b", 2, 2, 3))
    assert bottom == [
        *("0F0", "0SEND_F0", "0F1", "0WAIT_SEND_F0"),
        *("0SEND_F1", "0RECV_B0", "0WAIT_SEND_F1", "0B0"),
        *("0F2", "0SEND_F2", "0RECV_B1", "0WAIT_SEND_F2", "0B1"),
        *("0RECV_B2", "0B2", "0U"),
    ]
    assert top == [
        *("1RECV_F0", "1F0", "1B0"),
        *("1SEND_B0", "1RECV_F1", "1WAIT_SEND_B0", "1F1", "1B1"),
        *("1SEND_B1", "1RECV_F2", "1WAIT_SEND_B1", "1F2", "1B2"),
        *("1SEND_B2", "1WAIT_SEND_B2", "1U"),
    ]


def test_messages_of_zbh1() -> None:
    """A send up is waited for after the backward pass that proves its arrival, sends down at the end."""
    bottom, top = ([str(task) for task in order] for order in tasks("zbh1", 2, 2, 3))
    assert bottom == [
        *("0F0", "0SEND_F0", "0F1", "0SEND_F1"),
        *("0RECV_B0", "0I0", "0WAIT_SEND_F0", "0W0"),
        *("0RECV_B1", "0F2", "0SEND_F2", "0I1", "0WAIT_SEND_F1", "0W1"),
        *("0RECV_B2", "0I2", "0WAIT_SEND_F2", "0W2", "0U"),
    ]
    assert top == [
        *("1RECV_F0", "1F0", "1RECV_F1", "1I0", "1SEND_B0"),
        *("1F1", "1I1", "1SEND_B1", "1RECV_F2", "1W0"),
        *("1F2", "1I2", "1SEND_B2", "1W1", "1W2"),
        *("1WAIT_SEND_B0", "1WAIT_SEND_B1", "1WAIT_SEND_B2", "1U"),
    ]


@pytest.mark.parametrize(
    ("schedule", "ranks", "stages", "microbatches"),
    [
        *(("gpipe", p, p, m) for p, m in [(1, 1), (2, 1), (4, 7)]),
        *(("1f1b", p, p, m) for p, m in [(2, 2), (4, 4), (4, 9)]),
        *(("zbh1", p, p, m) for p, m in [(2, 2), (4, 4), (5, 11)]),
        *(("interleaved1f1b", p, v * p, m) for p, v, m in [(2, 2, 2), (2, 3, 6), (4, 2, 8)]),
        *(("zbv", p, 2 * p, m) for p, m in [(2, 4), (3, 6), (4, 13)]),
    ],
)
def test_everything_is_done_once_and_every_message_has_two_ends(
    schedule: str, ranks: int, stages: int, microbatches: int
) -> None:
    owner = owners(schedule, ranks, stages)
    orders = tasks(schedule, ranks, stages, microbatches)
    found = [task for order in orders for task in order]
    assert len(found) == len(set(found))
    for rank, order in enumerate(orders):
        assert {owner[task.stage] for task in order} == {rank}
    done = set(found)
    for stage in range(stages):
        assert Task(stage, Move.UPDATE) in done
        for micro in range(microbatches):
            assert Task(stage, Move.FORWARD, micro) in done
            whole = Task(stage, Move.BACKWARD, micro) in done
            apart = {Task(stage, Move.INPUT, micro), Task(stage, Move.WEIGHT, micro)} <= done
            assert whole != apart
            across = stage + 1 < stages and owner[stage] != owner[stage + 1]
            for move, place in (
                (Move.SEND_UP, stage),
                (Move.SENT_UP, stage),
                (Move.RECEIVE_UP, stage + 1),
                (Move.RECEIVE_DOWN, stage),
                (Move.SEND_DOWN, stage + 1),
                (Move.SENT_DOWN, stage + 1),
            ):
                assert (Task(place, move, micro) in done) == across


class _Stage(SimpleNamespace):
    """What a schedule asks of a stage before it runs."""

    def __init__(self, index: int, stages: int, ranks: int) -> None:
        super().__init__(
            stage_index=index,
            num_stages=stages,
            group_size=ranks,
            group_rank=0,
            has_backward=True,
            is_first=index == 0,
            is_last=index == stages - 1,
            submod=torch.nn.Identity(),
        )


@pytest.mark.parametrize(
    ("schedule", "name", "ranks", "stages", "microbatches"),
    [
        ("interleaved1f1b", "ScheduleInterleaved1F1B", 4, 8, 8),
        ("interleaved1f1b", "ScheduleInterleaved1F1B", 2, 6, 4),
        ("zbh1", "ScheduleInterleavedZeroBubble", 4, 4, 8),
        ("zbv", "ScheduleZBVZeroBubble", 2, 4, 4),
        ("zbv", "ScheduleZBVZeroBubble", 3, 6, 8),
    ],
)
def test_orders_of_torch(schedule: str, name: str, ranks: int, stages: int, microbatches: int) -> None:
    """All but where a receive is posted, which also depends on tasks that move parameters of sharded stages.

    Before 2.15, torch's orders hold no waits for sends: it waits for all of them after the last task.
    """
    owner = owners(schedule, ranks, stages)
    mine: list[Any] = [_Stage(stage, stages, ranks) for stage in range(stages) if owner[stage] == 0]
    theirs = getattr(schedules, name)(mine, microbatches, loss_fn=torch.nn.MSELoss()).pipeline_order_with_comms
    waits = any("WAIT_SEND" in str(action) for order in theirs.values() for action in order)
    unlike = ("RECV", "SHARD", "REDUCE", *(() if waits else ("WAIT_SEND",)))
    for rank, order in enumerate(tasks(schedule, ranks, stages, microbatches)):
        ours = [str(task) for task in order if task.move is not Move.UPDATE]
        expected = [str(action) for action in theirs[rank]]
        assert [text for text in ours if not any(word in text for word in unlike)] == [
            text for text in expected if not any(word in text for word in unlike)
        ]
        assert {text for text in ours if "RECV" in text} == {text for text in expected if "RECV" in text}
