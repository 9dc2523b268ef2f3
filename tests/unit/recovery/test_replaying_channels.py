"""Replaying channels: edges that outlive the process at either end."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from counterflow.message import MessageKind, Tag, pack_header
from counterflow.recovery.recoverable import _count
from counterflow.recovery.replaying_channels import ReplayEndpoint, ReplayingReceiver, ReplayingSender
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, MessageLayout, TensorSpec
from counterflow.transport.buffers import CpuGloo
from counterflow.transport.control import Watchdog
from counterflow.transport.handshake import MAX_HANDSHAKES
from counterflow.transport.rendezvous import LauncherStore, address
from counterflow.transport.shared_secret import RunKey
from tests.helpers.links import soon

EDGE = Edge(Stream.ACTIVATION, 1)
LAYOUT = MessageLayout((TensorSpec((5,)), TensorSpec((3,), torch.int64)))
KEY = RunKey(b"run")


def tags(first: int, end: int) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(first, end))


def filled(tag: Tag) -> tuple[torch.Tensor, ...]:
    return torch.full((5,), tag.n + 0.5), torch.arange(3) * tag.n


class Ends:
    """Factory of both ends of one edge; closes all of them."""

    def __init__(self) -> None:
        self.store = LauncherStore(dist.HashStore(), 0)
        self.run_key = KEY
        self.made: list[ReplayingSender | ReplayingReceiver] = []

    def endpoint(self, rank: int, timeout: float = 20) -> ReplayEndpoint:
        return ReplayEndpoint(
            EDGE, rank, 1 - rank, lambda tag: LAYOUT, CpuGloo(), Watchdog(timeout), self.store, self.run_key
        )

    def sender(self, first: int = 0, end: int = 0, timeout: float = 20) -> ReplayingSender:
        """A sender that has sent messages ``first`` .. ``end`` - 1, as far as there was room."""
        sender = ReplayingSender(self.endpoint(0, timeout), "127.0.0.1", 1 << 20)
        self.made.append(sender)
        for tag in tags(first, end):
            sender.send(tag, filled(tag))
        return sender

    def receiver(self, first: int, end: int, depth: int = 2, timeout: float = 20) -> ReplayingReceiver:
        receiver = ReplayingReceiver(self.endpoint(1, timeout), depth, tags(first, end))
        self.made.append(receiver)
        return receiver


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    for end in ends.made:
        end.end()


def take(receiver: ReplayingReceiver, first: int, end: int) -> None:
    for tag in tags(first, end):
        message = receiver.receive(tag)
        assert all(torch.equal(found, sent) for found, sent in zip(message, filled(tag), strict=True)), tag
        receiver.release()


def test_messages_come_in_order(ends: Ends) -> None:
    receiver = ends.receiver(0, 50)
    sender = ends.sender()
    for tag in tags(0, 50):
        sender.send(tag, filled(tag))
        take(receiver, tag.n, tag.n + 1)
    sender.close()
    receiver.close()


def test_a_receiver_is_sent_no_more_than_it_has_room_for(ends: Ends) -> None:
    """Two ahead, and one that could be in the block's hands; two more wait here."""
    receiver = ends.receiver(0, 50)
    sender = ends.sender(0, 5)
    assert soon(lambda: len(receiver._arrived) == 3)
    sender.endpoint.watchdog.timeout = 0.3
    with pytest.raises(ChannelError, match=r"^rank 0: .* to rank 1: room for activation of batch 5: nothing for 0.3 s"):
        sender.send(Tag(MessageKind.ACTIVATION, 5), filled(Tag(MessageKind.ACTIVATION, 5)))
    assert len(receiver._arrived) == 3


@pytest.mark.parametrize("again", [0, 3, 10, 12])
def test_a_replaced_receiver_gets_its_inputs_again(ends: Ends, again: int) -> None:
    sender, receiver = ends.sender(), ends.receiver(0, 50)
    for tag in tags(0, 12):
        sender.send(tag, filled(tag))
        take(receiver, tag.n, tag.n + 1)
    receiver.end()
    other = ends.receiver(again, 14)
    take(other, again, 12)
    for tag in tags(12, 14):
        sender.send(tag, filled(tag))
    take(other, 12, 14)
    sender.close()


@pytest.mark.parametrize("first", [0, 4, 7])
def test_a_replaced_sender_sends_the_missing_messages(ends: Ends, first: int) -> None:
    """It starts at an earlier message, and sends the same messages again."""
    sender, receiver = ends.sender(), ends.receiver(0, 12)
    for tag in tags(0, 7):
        sender.send(tag, filled(tag))
        take(receiver, tag.n, tag.n + 1)
    sender.end()
    other = ends.sender(first, 9)
    take(receiver, 7, 9)
    for tag in tags(9, 12):
        other.send(tag, filled(tag))
    take(receiver, 9, 12)
    other.close()


def test_a_dropped_message_cannot_be_replayed(ends: Ends) -> None:
    sender, receiver = ends.sender(), ends.receiver(0, 50)
    for tag in tags(0, 10):
        sender.send(tag, filled(tag))
        take(receiver, tag.n, tag.n + 1)
    sender.drop(Tag(MessageKind.ACTIVATION, 8))
    receiver.end()
    take(ends.receiver(8, 10), 8, 10)
    ends.receiver(7, 10)
    with pytest.raises(ChannelError, match=r"rank 0: .*: it needs activation of batch 7, which is not kept any more"):
        sender.endpoint.watchdog.wait(lambda: False, "nothing")


def test_a_message_that_was_not_sent_is_not_dropped(ends: Ends) -> None:
    """The peer may have restarted from an older checkpoint than the one that has just been completed."""
    sender = ends.sender(0, 2)
    sender.drop(Tag(MessageKind.ACTIVATION, 2))
    take(ends.receiver(0, 2), 0, 2)


def test_a_sender_that_skips_a_message_is_an_error(ends: Ends) -> None:
    receiver = ends.receiver(3, 10)
    ends.sender(5, 7)
    with pytest.raises(ChannelError, match="activation of batch 5 came where activation of batch 3 was expected"):
        receiver.receive(Tag(MessageKind.ACTIVATION, 3))


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        bytes(1000),
        b"x" * 64 + pack_header(Tag(MessageKind.ACTIVATION, 0), 3),
    ],
)
def test_a_stranger_gets_no_message(ends: Ends, hello: bytes) -> None:
    sender = ends.sender(0, 2)
    host, port = ends.store.get(sender.endpoint.key).decode().split()
    answer = b""
    # The sender may close the connection while the stranger sends.
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as stranger:
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        while piece := stranger.recv(4096):
            answer += piece
    nonce, refusal = answer[:32], answer[32:]
    assert len(nonce) in (0, 32)
    assert refusal in (b"", bytes(32)), "neither a proof nor a message"
    take(ends.receiver(0, 2), 0, 2)


def test_ends_with_different_secrets_name_each_other(ends: Ends) -> None:
    ends.sender(0, 2)
    ends.run_key = RunKey(b"run", b"another secret of 16 bytes or more")
    receiver = ends.receiver(0, 2, timeout=1)
    with pytest.raises(
        ChannelError,
        match=r"^rank 1: activation edge 1->2 with rank 0: the other side did not prove that it has the same secret$",
    ):
        receiver.receive(Tag(MessageKind.ACTIVATION, 0))


def test_a_port_that_a_stranger_took_costs_a_receiver_nothing(ends: Ends) -> None:
    """A sender was killed, and another program has its port until it is replaced."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ends.store.set(ends.endpoint(0).key, f"127.0.0.1 {taken.getsockname()[1]}")
        receiver = ends.receiver(0, 2)
        for _ in range(3):
            connection, _ = taken.accept()
            with connection:
                connection.sendall(bytes(1000))
    ends.sender(0, 2)
    take(receiver, 0, 2)


def test_strangers_who_stay_do_not_keep_a_replaced_peer_out(ends: Ends) -> None:
    """More of them than there is room for; the real one needs no longer than without."""
    sender = ends.sender(0, 2)
    take(ends.receiver(0, 2), 0, 2)
    host, port = ends.store.get(sender.endpoint.key).decode().split()
    with contextlib.ExitStack() as stay:
        for i in range(3 * MAX_HANDSHAKES):
            stranger = stay.enter_context(socket.create_connection((host, int(port)), 5))
            stranger.sendall(bytes(i % 70))
        start = time.monotonic()
        take(ends.receiver(0, 2), 0, 2)
        assert time.monotonic() - start < 2


def test_tensors_of_another_layout_are_refused(ends: Ends) -> None:
    with pytest.raises(ValueError, match=r"activation edge 1->2: activation of batch 0: a message of "):
        ends.sender().send(Tag(MessageKind.ACTIVATION, 0), (torch.zeros(4),))


def test_it_listens_where_gloo_would() -> None:
    assert address({"GLOO_SOCKET_IFNAME": "lo"}) == "127.0.0.1"
    assert address({"GLOO_SOCKET_IFNAME": "lo,eth9"}) == "127.0.0.1"
    assert socket.inet_aton(address({}))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 1000])
def test_reports_are_counted_without_a_look_at_each(count: int) -> None:
    looks = 0

    def there(i: int) -> bool:
        nonlocal looks
        looks += 1
        return i < count

    assert _count(there) == count
    assert looks < 25
