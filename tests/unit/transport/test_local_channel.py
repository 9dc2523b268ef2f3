"""Local channel: both ends inside a process."""

import pytest
import torch

from counterflow.message import MessageError, MessageKind, Tag
from counterflow.topology import Edge, Stream
from counterflow.transport import LocalChannel


@pytest.fixture
def channel() -> LocalChannel:
    return LocalChannel(Edge(Stream.TARGET, 2))


def target(n: int) -> Tag:
    return Tag(MessageKind.TARGET, n)


def test_first_in_first_out(channel: LocalChannel) -> None:
    tensors = [torch.tensor([n]) for n in range(5)]
    for n in range(3):
        channel.send(target(n), (tensors[n],))
    assert channel.receive(target(0))[0] is tensors[0]  # by reference
    for n in (3, 4):
        channel.send(target(n), (tensors[n], tensors[0]))
    for n in range(1, 5):
        assert channel.receive(target(n))[0] is tensors[n]
        channel.release()
    channel.close()


def test_another_message_is_next(channel: LocalChannel) -> None:
    channel.send(target(0), ())
    with pytest.raises(MessageError, match=r"^target edge 3->2: target of batch 0 came where target of batch 1 was"):
        channel.receive(target(1))


def test_nothing_is_there(channel: LocalChannel) -> None:
    with pytest.raises(MessageError, match=r"^target edge 3->2: empty where target of batch 0 was expected$"):
        channel.receive(target(0))
    channel.send(target(0), ())
    channel.receive(target(0))
    with pytest.raises(MessageError, match="empty where target of batch 1"):
        channel.receive(target(1))


def test_close_with_leftovers(channel: LocalChannel) -> None:
    for n in range(3):
        channel.send(target(n), ())
    channel.receive(target(0))
    with pytest.raises(MessageError, match=r"^target edge 3->2: target of batch 1 was sent and never taken$"):
        channel.close()
