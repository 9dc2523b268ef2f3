"""The orders of pipelines: drawn as timetables for small ones, and held against those of torch for others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.pipelining import schedules

from counterflow.schedule.pipeline_schedules import PipelineAction, PipelineOp, owners, pipeline_actions

COMPUTES = "FBIWU"


def computed(order: list[PipelineAction]) -> str:
    """The tasks of a rank that compute, without their stage."""
    return " ".join(str(action)[1:] for action in order if action.op.value in COMPUTES)


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
    assert [computed(order) for order in pipeline_actions(schedule, 3, 3, 4)] == expected


def test_messages_of_1f1b() -> None:
    """A send one way and a receive the other way are posted together, and both waited for."""
    bottom, top = ([str(action) for action in order] for order in pipeline_actions("1f1b", 2, 2, 3))
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
    bottom, top = ([str(action) for action in order] for order in pipeline_actions("zbh1", 2, 2, 3))
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
    orders = pipeline_actions(schedule, ranks, stages, microbatches)
    found = [action for order in orders for action in order]
    assert len(found) == len(set(found))
    for rank, order in enumerate(orders):
        assert {owner[action.stage] for action in order} == {rank}
    done = set(found)
    for stage in range(stages):
        assert PipelineAction(stage, PipelineOp.UPDATE) in done
        for micro in range(microbatches):
            assert PipelineAction(stage, PipelineOp.FORWARD, micro) in done
            whole = PipelineAction(stage, PipelineOp.BACKWARD, micro) in done
            apart = {
                PipelineAction(stage, PipelineOp.BACKWARD_INPUT, micro),
                PipelineAction(stage, PipelineOp.BACKWARD_WEIGHT, micro),
            } <= done
            assert whole != apart
            across = stage + 1 < stages and owner[stage] != owner[stage + 1]
            for op, place in (
                (PipelineOp.SEND_F, stage),
                (PipelineOp.WAIT_SEND_F, stage),
                (PipelineOp.RECV_F, stage + 1),
                (PipelineOp.RECV_B, stage),
                (PipelineOp.SEND_B, stage + 1),
                (PipelineOp.WAIT_SEND_B, stage + 1),
            ):
                assert (PipelineAction(place, op, micro) in done) == across


class _Stage(SimpleNamespace):
    """Stage with the attributes that a schedule reads before it runs."""

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
    """All but where a receive is posted, which also depends on actions that move parameters of sharded stages.

    Before 2.15, torch's orders hold no waits for sends: it waits for all of them after the last action.
    """
    owner = owners(schedule, ranks, stages)
    mine: list[Any] = [_Stage(stage, stages, ranks) for stage in range(stages) if owner[stage] == 0]
    theirs = getattr(schedules, name)(mine, microbatches, loss_fn=torch.nn.MSELoss()).pipeline_order_with_comms
    waits = any("WAIT_SEND" in str(action) for order in theirs.values() for action in order)
    unlike = ("RECV", "SHARD", "REDUCE", *(() if waits else ("WAIT_SEND",)))
    for rank, order in enumerate(pipeline_actions(schedule, ranks, stages, microbatches)):
        ours = [str(action) for action in order if action.op is not PipelineOp.UPDATE]
        expected = [str(action) for action in theirs[rank]]
        assert [text for text in ours if not any(word in text for word in unlike)] == [
            text for text in expected if not any(word in text for word in unlike)
        ]
        assert {text for text in ours if "RECV" in text} == {text for text in expected if "RECV" in text}
