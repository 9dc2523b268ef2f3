"""Replay buffer: messages in memory, and beyond that in files."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterflow.message import MessageKind, Tag
from counterflow.recovery.replaying_channels import ReplayBuffer, order
from counterflow.schedule import RunPlan
from counterflow.topology import Edge, Stream

BYTES = 8


def message(i: int) -> torch.Tensor:
    return torch.full((BYTES,), i % 256, dtype=torch.uint8)


def tags(count: int) -> list[Tag]:
    return [Tag(MessageKind.TARGET, n) for n in range(count)]


@given(st.integers(1, 40), st.integers(0, 60), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_messages_stay_until_they_are_dropped(count: int, max_bytes: int, dropped: list[tuple[int, int]]) -> None:
    """With any limit of memory, and drops at any time."""
    replay = ReplayBuffer(max_bytes)
    kept = 0
    for i, tag in enumerate(tags(count)):
        replay.append(tag, message(i))
        if dropped and i == count // 2:
            for before, position in dropped:
                replay.drop(Tag(MessageKind.TARGET, before), position)
                kept = max(kept, min(before, position, i + 1))
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


def test_files_are_deleted_with_their_messages() -> None:
    replay = ReplayBuffer(BYTES)
    before = len(os.listdir("/proc/self/fd"))
    for i, tag in enumerate(tags(1000)):
        replay.append(tag, message(i))
        if i % 10 == 9:
            replay.drop(tag, i)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("rule", [{}, {"predicts_down": True}, {"gradients_from": 3}])
def test_the_sort_key_follows_the_order_of_messages(stream: Stream, rule: dict[str, int]) -> None:
    plan = RunPlan(7, 2, evaluate_every=2, test_batches=3, validation_batches=2, **rule)  # type: ignore[arg-type]
    sent = list(plan.messages(Edge(stream, 2)))
    assert sent == sorted(sent, key=order)
    assert len({order(tag) for tag in sent}) == len(sent)
