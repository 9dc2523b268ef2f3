"""Channels between processes when something fails: every wait ends in time, with an error that names rank, edge, batch.

The processes of these tests are fresh ones that die or break their channels; each prints its results with `log`.
"""

import os
import re
import signal
import time
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from counterflow.message import HEADER_BYTES, MessageKind, Tag, pack_header
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, Communicator, MessageLayout, TensorSpec
from tests.helpers.links import DOWN, ROWS, UP, batches, filled, join, log, rows, until
from tests.helpers.processes import Ended, run_fresh

PROMPT = 5.0
"""Seconds within which a lost rank has to be noticed."""

FIRST = Tag(MessageKind.ACTIVATION, 0)


class Logged(NamedTuple):
    seconds: float
    text: str


def logged(ended: Ended, what: str) -> Logged:
    """The line that a process printed with `log`."""
    found = re.search(rf"^LOGGED {what} (\S+) (.*)$", ended.stderr, re.MULTILINE)
    assert found, f"status {ended.status}: {ended.stderr}"
    return Logged(float(found[1]), found[2])


def lost(found: Logged) -> str:
    """The text of a `ChannelError` about a lost rank, without the reason in brackets that gloo gives."""
    text = re.fullmatch(r"ChannelError: (.*: lost rank \d) \(.+\)", found.text)
    assert text, found
    return text[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bye() -> None:
    """End now, as the launcher does: threads may wait for what never comes."""
    os._exit(0)


# -- messages that are not what was agreed


def raw(message: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)


def send_raw(comm: Communicator, message: bytes) -> None:
    """Bytes on the edge as no `RemoteSender` would send them."""
    group, peer = comm._groups[UP]
    work = dist.isend(raw(message), peer, group=group)
    assert work is not None
    work.wait()


def whole(n: int) -> bytes:
    """Message n as it should be."""
    return pack_header(Tag(MessageKind.ACTIVATION, n), ROWS.payload_nbytes) + bytes(ROWS.payload_nbytes)


def forge(rank: int, size: int, store_path: str, forged: bytes) -> None:
    """Two right messages, and when they have been taken, a forged one."""
    comm = join(rank, size, store_path)
    if rank == 0:
        for message in (whole(0), whole(1)):
            send_raw(comm, message)
        comm.all_gather(None, "taken")
        send_raw(comm, forged)
    else:
        receiver = comm.receiver(UP, rows, 2, batches(10))
        for n in (0, 1):
            receiver.receive(Tag(MessageKind.ACTIVATION, n))
            receiver.release()
        comm.all_gather(None, "taken")
        log("forged", lambda: receiver.receive(Tag(MessageKind.ACTIVATION, 2)))
        log("again", lambda: receiver.receive(Tag(MessageKind.ACTIVATION, 3)))
    comm.all_gather(None, "the end")
    bye()


def flipped(message: bytes, place: int) -> bytes:
    corrupt = bytearray(message)
    corrupt[place] ^= 0x10
    return bytes(corrupt)


FORGED = {
    "magic": (flipped(whole(2), 0), "corrupt header where activation of batch 2 was expected"),
    "batch": (flipped(whole(2), 12), "corrupt header where activation of batch 2 was expected"),
    "checksum": (flipped(whole(2), 39), "corrupt header where activation of batch 2 was expected"),
    "zeros": (bytes(ROWS.nbytes), "corrupt header where activation of batch 2 was expected"),
    "another batch": (whole(3), "activation of batch 3 came where activation of batch 2 was expected"),
    "too short by its own account": (
        pack_header(Tag(MessageKind.ACTIVATION, 2), 64) + bytes(64),
        f"activation of batch 2 announces 64 bytes, {ROWS.payload_nbytes} were agreed",
    ),
    "shorter than a header": (b"GET / HTTP", "corrupt header where activation of batch 2 was expected"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_message_ends_the_run(case: str) -> None:
    forged, why = FORGED[case]
    ends = run_fresh(2, forge, forged, timeout=60)
    assert [end.status for end in ends] == [0, 0], ends
    expected = f"ChannelError: rank 1: activation edge 1->2 with rank 0: activation of batch 2: {why}"
    assert logged(ends[1], "forged").text == expected
    assert logged(ends[1], "forged").seconds < PROMPT
    assert logged(ends[1], "again").text == expected  # the channel goes on with nothing


def oversize(rank: int, size: int, store_path: str, nbytes: int) -> None:
    """A message larger than the posted buffer, and a channel in the other direction."""
    comm = join(rank, size, store_path)
    if rank == 0:
        other = comm.receiver(DOWN, rows, 2, batches(10))
        group, peer = comm._groups[UP]
        message = raw(whole(0).ljust(nbytes, b"\0"))
        work = dist.isend(message, peer, group=group)
        log("other channel", lambda: other.receive(FIRST))
        del work
    else:
        receiver = comm.receiver(UP, rows, 2, batches(10))
        log("oversize", lambda: receiver.receive(FIRST))
    bye()


@pytest.mark.parametrize("nbytes", [ROWS.nbytes + 1, 20_000_000])
def test_gloo_aborts_on_a_message_larger_than_agreed(nbytes: int) -> None:
    """The reason why `MessageLayout.check` comes before every send. If it fails, gloo raises: simplify."""
    sender, receiver = run_fresh(2, oversize, nbytes, timeout=60)
    assert receiver.status == -signal.SIGABRT
    assert f"{nbytes} vs {ROWS.nbytes}" in receiver.stderr
    assert "LOGGED" not in receiver.stderr
    found = logged(sender, "other channel")
    assert lost(found) == "rank 0: target edge 2->1 with rank 1: activation of batch 0: lost rank 1"
    assert found.seconds < PROMPT


# -- a lost rank


def killed_while_we_receive(rank: int, size: int, store_path: str, before: int) -> None:
    """Rank 0 sends ``before`` messages and dies."""
    comm = join(rank, size, store_path, 60)
    if rank == 0:
        sender = comm.sender(UP, rows)
        for tag in batches(before):
            sender.send(tag, filled(ROWS, tag.n))
        sender.close()
        time.sleep(0.5)
        die()
    receiver = comm.receiver(UP, rows, 2, batches(20))
    for tag in batches(before):
        receiver.receive(tag)
        receiver.release()
    log("receive", lambda: receiver.receive(Tag(MessageKind.ACTIVATION, before)))
    log("gather", lambda: comm.all_gather(None, "outcomes"))
    bye()


@pytest.mark.parametrize("before", [0, 5])
def test_killed_while_we_receive(before: int) -> None:
    killed, survivor = run_fresh(2, killed_while_we_receive, before, timeout=60)
    assert killed.status == -signal.SIGKILL
    found = logged(survivor, "receive")
    assert lost(found) == f"rank 1: activation edge 1->2 with rank 0: activation of batch {before}: lost rank 0"
    assert found.seconds < 0.5 + PROMPT
    assert logged(survivor, "gather").text.startswith("ChannelError: rank 1: lost a rank while all gather outcomes (")


def killed_while_we_wait_for_room(
    rank: int, size: int, store_path: str, depth: int, layout: MessageLayout, closes: bool
) -> None:
    """Rank 1 takes nothing and dies once rank 0 has filled the channel, and sends one more or closes."""
    comm = join(rank, size, store_path, 60)

    def layouts(_: Tag) -> MessageLayout:
        return layout

    if rank == 1:
        comm.receiver(UP, layouts, depth, batches(100))
        comm.all_gather(None, "full")
        time.sleep(0.5)
        die()
    sender = comm.sender(UP, layouts)
    room = depth + 3
    for tag in batches(room):
        sender.send(tag, filled(layout, tag.n))
    comm.all_gather(None, "full")
    if not closes:
        log("send", lambda: sender.send(Tag(MessageKind.ACTIVATION, room), filled(layout, room)))
    log("close", sender.close)
    bye()


MEGABYTES = MessageLayout((TensorSpec((2_000_000,)),))


@pytest.mark.parametrize("closes", [False, True], ids=["send", "close"])
@pytest.mark.parametrize("layout", [ROWS, MEGABYTES], ids=["small", "large"])
def test_killed_while_we_wait_for_room(layout: MessageLayout, closes: bool) -> None:
    survivor, killed = run_fresh(2, killed_while_we_wait_for_room, 2, layout, closes, timeout=60)
    assert killed.status == -signal.SIGKILL
    found = logged(survivor, "close" if closes else "send")
    # the message that is under way, the first after the three that were received
    assert lost(found) == "rank 0: activation edge 1->2 with rank 1: activation of batch 3: lost rank 1"
    assert found.seconds < 0.5 + PROMPT
    assert logged(survivor, "close").text == found.text


def killed_before_we_send(rank: int, size: int, store_path: str) -> None:
    comm = join(rank, size, store_path, 60)
    if rank == 1:
        die()
    time.sleep(1.0)
    sender = comm.sender(UP, rows)

    def send_all() -> None:
        for tag in batches(10):
            sender.send(tag, filled(ROWS, tag.n))

    log("send", send_all)
    log("receiver", lambda: comm.receiver(DOWN, rows, 2, batches(3)).receive(FIRST))
    bye()


def test_killed_before_we_send() -> None:
    survivor, killed = run_fresh(2, killed_before_we_send, timeout=60)
    assert killed.status == -signal.SIGKILL
    found = logged(survivor, "send")
    # the edge's own thread notices, or on a busy machine the thread that watches the peer: before the first message, or
    # once there is no more room
    own = "rank 0: activation edge 1->2 with rank 1: activation of batch 0: lost rank 1"
    room = r"ChannelError: rank 0: activation edge 1->2 to rank 1: room for activation of batch [0-2]: lost rank 1"
    assert re.fullmatch(room, found.text) or lost(found) == own
    assert found.seconds < PROMPT
    # a channel that comes later fails at once as well, with its own name or with the first failure
    later = logged(survivor, "receiver")
    assert re.fullmatch(r"rank 0: (activation edge 1->2|target edge 2->1) with rank 1: .*: lost rank 1", lost(later))
    assert later.seconds < PROMPT


def killed_for_a_cause(rank: int, size: int, store_path: str) -> None:
    comm = join(rank, size, store_path, 60)
    if rank == 1:
        die()
    # Nothing is under way, so that this thread notices itself, when it starts a message; on a busy machine gloo takes
    # a second to see that the peer is gone.
    time.sleep(3.0)
    comm.watchdog.find_cause = lambda error: ChannelError(f"the cause of: {error}")
    log("post", lambda: comm.receiver(DOWN, rows, 2, batches(3)))
    log("send", lambda: comm.sender(UP, rows).send(FIRST, filled(ROWS, 0)))
    bye()


def test_a_thread_that_finds_the_peer_lost_as_it_starts_a_message_asks_for_the_cause() -> None:
    survivor, killed = run_fresh(2, killed_for_a_cause, timeout=60)
    assert killed.status == -signal.SIGKILL
    for what in ("post", "send"):
        assert logged(survivor, what).text.startswith("ChannelError: the cause of: rank 0: ")


HUGE = MessageLayout((TensorSpec((40_000_000,), torch.uint8),))


def killed_mid_message(rank: int, size: int, store_path: str, other: bool) -> None:
    """Rank 1 dies while a message is on its way through the socket, and not between two of them.

    It stops first, so that the socket fills up; then another process would see the message half sent.
    """
    comm = join(rank, size, store_path, 8)
    if rank == 1:
        comm.receiver(UP, lambda tag: HUGE, 1, batches(100))
        if os.fork() == 0:
            parent = os.getppid()
            os.kill(parent, signal.SIGSTOP)
            time.sleep(1.5)
            os.kill(parent, signal.SIGKILL)
            os._exit(0)
        time.sleep(60)
    if other:
        comm.receiver(DOWN, rows, 2, batches(100))
    time.sleep(0.7)  # rank 1 is stopped, and does not read the socket
    sender = comm.sender(UP, lambda tag: HUGE)
    content = filled(HUGE, 0)

    def send_all() -> None:
        for tag in batches(10):
            sender.send(tag, content)

    log("send", send_all)
    bye()


def test_killed_mid_message_with_a_channel_back() -> None:
    survivor, killed = run_fresh(2, killed_mid_message, True, timeout=60)
    assert killed.status == -signal.SIGKILL
    found = logged(survivor, "send")
    assert lost(found) == "rank 0: target edge 2->1 with rank 1: activation of batch 0: lost rank 1"
    assert found.seconds < 1.5 + PROMPT


def test_killed_mid_message_without_a_channel_back() -> None:
    """In the drain and the last evaluation of a run, all targets have come and activations still go up."""
    survivor, killed = run_fresh(2, killed_mid_message, False, timeout=60)
    assert killed.status == -signal.SIGKILL
    found = logged(survivor, "send")
    assert re.match(r"ChannelError: rank 0: activation edge 1->2 .*: .*activation of batch \d: lost rank 1", found.text)
    assert found.seconds < 1.5 + PROMPT


# -- a silent rank


def silent(rank: int, size: int, store_path: str, seconds: float) -> None:
    """Rank 0 lives and neither sends nor receives."""
    comm = join(rank, size, store_path, 60)
    if rank == 0:
        comm.all_gather(None, "the end")
        bye()
    comm.watchdog.timeout = seconds
    receiver = comm.receiver(UP, rows, 2, batches(3))
    log("receive", lambda: receiver.receive(FIRST))
    comm.all_gather(None, "the end")
    bye()


def test_a_silent_sender_is_given_up() -> None:
    ends = run_fresh(2, silent, 1.5, timeout=60)
    assert [end.status for end in ends] == [0, 0], ends
    found = logged(ends[1], "receive")
    assert 1.4 <= found.seconds < 1.5 + PROMPT
    assert re.fullmatch(
        r"ChannelError: rank 1: activation edge 1->2 (with|from) rank 0: (waiting for )?activation of batch 0: "
        r"nothing for 1\.\d s \(engine\.timeout\)",
        found.text,
    ), found


def silent_above(rank: int, size: int, store_path: str, seconds: float) -> None:
    """Rank 1 lives and posts no receive."""
    comm = join(rank, size, store_path, 60)
    if rank == 1:
        comm.all_gather(None, "the end")
        bye()
    comm.watchdog.timeout = seconds
    sender = comm.sender(UP, rows)
    for tag in batches(2):
        sender.send(tag, filled(ROWS, tag.n))
    log("send", lambda: sender.send(Tag(MessageKind.ACTIVATION, 2), filled(ROWS, 2)))
    log("close", sender.close)
    comm.all_gather(None, "the end")
    bye()


def test_a_silent_receiver_is_given_up() -> None:
    ends = run_fresh(2, silent_above, 1.5, timeout=60)
    assert [end.status for end in ends] == [0, 0], ends
    found = logged(ends[0], "send")
    assert 1.0 <= found.seconds < 1.5 + PROMPT
    # the message under way, or the one that waits for its place, whichever clock is first
    what = "(with rank 1: activation of batch 0|to rank 1: room for activation of batch 2)"
    end = r"nothing for 1\.\d s \(engine\.timeout\)"
    assert re.fullmatch(f"ChannelError: rank 0: activation edge 1->2 {what}: {end}", found.text), found
    assert logged(ends[0], "close").seconds < PROMPT
    assert logged(ends[0], "close").text.startswith("ChannelError: rank 0: activation edge 1->2")


# -- one failure ends all waits of a process


def middle(rank: int, size: int, store_path: str, waits_in: str) -> None:
    """Rank 0 dies while rank 1 waits for rank 2, which lives, and neither sends nor receives."""
    comm = join(rank, size, store_path, 60)
    if rank == 0:
        time.sleep(1.0)
        die()
    if rank == 2:
        until(comm, 1)
        bye()
    comm.receiver(UP, rows, 2, batches(10))
    if waits_in == "send":
        sender = comm.sender(Edge(Stream.ACTIVATION, 2), rows)

        def send_all() -> None:
            for tag in batches(20):
                sender.send(tag, filled(ROWS, tag.n))

        log("wait", send_all)
    else:
        receiver = comm.receiver(Edge(Stream.TARGET, 2), rows, 2, batches(10))
        log("wait", receiver.close if waits_in == "close" else lambda: receiver.receive(FIRST))
    comm.send_report("logged")
    bye()


@pytest.mark.parametrize("waits_in", ["receive", "send", "close"])
def test_a_failure_on_one_edge_ends_the_wait_on_another(waits_in: str) -> None:
    killed, survivor, above = run_fresh(3, middle, waits_in, timeout=60)
    assert (killed.status, above.status) == (-signal.SIGKILL, 0)
    found = logged(survivor, "wait")
    assert lost(found) == "rank 1: activation edge 1->2 with rank 0: activation of batch 0: lost rank 0"
    assert found.seconds < 1.0 + PROMPT


def wave(rank: int, size: int, store_path: str) -> None:
    """Every rank waits for the one below, and the lowest dies: each that ends takes the next one along."""
    comm = join(rank, size, store_path, 60)
    if rank == 0:
        die()
    receiver = comm.receiver(Edge(Stream.ACTIVATION, rank), rows, 2, batches(10))
    log("wait", lambda: receiver.receive(FIRST))
    bye()


def test_a_lost_rank_ends_all_others_in_turn() -> None:
    killed, *others = run_fresh(3, wave, timeout=60)
    assert killed.status == -signal.SIGKILL
    for rank, ended in enumerate(others, 1):
        found = logged(ended, "wait")
        edge = f"activation edge {rank}->{rank + 1}"
        assert lost(found) == f"rank {rank}: {edge} with rank {rank - 1}: activation of batch 0: lost rank {rank - 1}"
        assert found.seconds < PROMPT


def test_a_header_is_64_bytes() -> None:
    """`FORGED` relies on it."""
    assert len(whole(0)) == ROWS.nbytes == HEADER_BYTES + 64 + 64
