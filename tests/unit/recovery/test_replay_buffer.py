"""What may have to be sent again, in memory and beyond."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterflow.message import MessageKind, Tag
from counterflow.recovery.replay_buffer import ReplayBuffer, order
from counterflow.schedule import RunPlan
from counterflow.topology import Edge, Stream

BYTES = 8


def message(i: int) -> torch.Tensor:
    return torch.full((BYTES,), i % 256, dtype=torch.uint8)


def tags(count: int) -> list[Tag]:
    return [Tag(MessageKind.TARGET, n) for n in range(count)]


@given(st.integers(1, 40), st.integers(0, 60), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_it_keeps_what_is_not_forgotten(count: int, most: int, forgotten: list[tuple[int, int]]) -> None:
    """However little is held in memory, and whenever something is forgotten on the way."""
    replay = ReplayBuffer(most)
    kept = 0
    for i, tag in enumerate(tags(count)):
        replay.append(tag, message(i))
        if forgotten and i == count // 2:
            for before, place in forgotten:
                replay.forget(Tag(MessageKind.TARGET, before), place)
                kept = max(kept, min(before, place, i + 1))
    assert len(replay) == count
    assert replay.first == kept
    for i in range(kept, count):
        tag, buffer = replay.message(i)
        assert tag == Tag(MessageKind.TARGET, i)
        assert torch.equal(buffer, message(i))
    assert replay.reaches(Tag(MessageKind.TARGET, kept))
    assert not kept or not replay.reaches(Tag(MessageKind.TARGET, kept - 1))


def test_memory_is_bounded() -> None:
    replay = ReplayBuffer(3 * BYTES)
    for i, tag in enumerate(tags(100)):
        replay.append(tag, message(i))
        assert replay.held <= 3 * BYTES
    assert torch.equal(replay.message(0)[1], message(0))


def test_files_go_with_what_is_in_them() -> None:
    replay = ReplayBuffer(BYTES)
    before = len(os.listdir("/proc/self/fd"))
    for i, tag in enumerate(tags(1000)):
        replay.append(tag, message(i))
        if i % 10 == 9:
            replay.forget(tag, i)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("rule", [{}, {"predicts_down": True}, {"gradients_from": 3}])
def test_tags_compare_as_they_follow_each_other(stream: Stream, rule: dict[str, int]) -> None:
    plan = RunPlan(7, 2, evaluate_every=2, test_batches=3, validation_batches=2, **rule)  # type: ignore[arg-type]
    sent = list(plan.messages(Edge(stream, 2)))
    assert sent == sorted(sent, key=order)
    assert len({order(tag) for tag in sent}) == len(sent)
