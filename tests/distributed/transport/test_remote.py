"""Channels between processes, over gloo, as long as nothing fails."""

import math
import threading
import time
import weakref

import pytest
import torch

from counterflow.message import MessageKind, Tag
from counterflow.topology import Edge, Stream
from counterflow.transport import MessageLayout, TensorSpec
from tests.helpers.links import DOWN, ROWS, UP, batches, filled, joined, rows, same_bits, soon, take, until
from tests.helpers.processes import Pool

VARIOUS = [
    MessageLayout((TensorSpec((3, 5)),)),
    MessageLayout((TensorSpec((2, 3, 4), torch.float16), TensorSpec((7,), torch.int64))),
    MessageLayout((TensorSpec(()), TensorSpec((), torch.float64), TensorSpec((), torch.bool))),
    MessageLayout((TensorSpec((0, 3)), TensorSpec((5,), torch.bool), TensorSpec((0,), torch.int64))),
    MessageLayout(()),
    MessageLayout(
        (TensorSpec((9,), torch.bfloat16), TensorSpec((4, 1), torch.complex64), TensorSpec((33,), torch.int32))
    ),
    MessageLayout((TensorSpec((1,), torch.uint8), TensorSpec((129, 3), torch.float64))),
    MessageLayout((TensorSpec((100_003,)),)),
]


def various(tag: Tag) -> MessageLayout:
    return VARIOUS[tag.n % len(VARIOUS)]


def growing(tag: Tag) -> MessageLayout:
    """Up and down again, so that buffers are made anew, and then too large."""
    return MessageLayout(
        (TensorSpec((round(2000 * (1 + math.sin(tag.n / 3))) + 1,)), TensorSpec((tag.n % 5,), torch.int64))
    )


def exchange(rank: int, size: int, store_path: str, count: int) -> None:
    """Both streams at once, every message checked for bits, order and alignment."""
    with joined(rank, size, store_path) as comm:
        for layouts, depth in ((various, 2), (growing, 1), (growing, 4)):
            mine, theirs = (UP, DOWN) if rank == 0 else (DOWN, UP)
            sender = comm.sender(mine, layouts)
            receiver = comm.receiver(theirs, layouts, depth, batches(count))
            for tag in batches(count):
                content = filled(layouts(tag), tag.n + 1000 * rank)
                sender.send(tag, content)
                for tensor in content:
                    tensor.zero_()  # the channel has a copy
                payload = receiver.receive(tag)
                assert same_bits(payload, filled(layouts(tag), tag.n + 1000 * (1 - rank))), tag
                assert all(tensor.data_ptr() % 64 == 0 for tensor in payload if tensor.numel()), tag
                receiver.release()
            sender.close()
            receiver.close()


def test_messages_arrive_as_sent(pool: Pool) -> None:
    pool.run(2, exchange, 3 * len(VARIOUS))


def three(rank: int, size: int, store_path: str, count: int) -> list[float]:
    """A middle rank with four channels that hands on what it gets, in both directions."""
    with joined(rank, size, store_path) as comm:
        seen = []
        up = [Edge(Stream.ACTIVATION, 1), Edge(Stream.ACTIVATION, 2)]
        down = [Edge(Stream.TARGET, 1), Edge(Stream.TARGET, 2)]
        if rank == 0:
            sender, receiver = comm.sender(up[0], rows), comm.receiver(down[0], rows, 2, batches(count))
            for tag in batches(count):
                sender.send(tag, filled(ROWS, tag.n))
                assert same_bits(receiver.receive(tag), filled(ROWS, tag.n))
                receiver.release()
            ends = [sender, receiver]
        elif rank == 1:
            sources = [comm.receiver(up[0], rows, 2, batches(count)), comm.receiver(down[1], rows, 2, batches(count))]
            sinks = [comm.sender(up[1], rows), comm.sender(down[0], rows)]
            for tag in batches(count):
                for source, sink in zip(sources, sinks, strict=True):
                    sink.send(tag, source.receive(tag))
                    source.release()
            ends = [*sources, *sinks]
        else:
            sender, receiver = comm.sender(down[1], rows), comm.receiver(up[1], rows, 2, batches(count))
            for tag in batches(count):
                sender.send(tag, receiver.receive(tag))
                receiver.release()
                seen.append(tag.n)
            ends = [sender, receiver]
        for end in ends:
            end.close()
        return seen


def test_a_column_of_three(pool: Pool) -> None:
    assert pool.run(3, three, 30)[2] == list(range(30))


LARGE = MessageLayout(
    (TensorSpec((700_000,)), TensorSpec((3, 5)), TensorSpec((2, 300_001), torch.int64), TensorSpec(()))
)


def large(rank: int, size: int, store_path: str, depth: int) -> bool:
    """Large tensors among small ones; every other message has none. Whether a sender keeps what has left."""
    layouts = (LARGE, ROWS)
    with joined(rank, size, store_path) as comm:
        if rank == 0:
            sender = comm.sender(UP, lambda tag: layouts[tag.n % 2])
            for tag in batches(12):
                content = filled(layouts[tag.n % 2], tag.n)
                sender.send(tag, content)
            kept = weakref.ref(content[0].untyped_storage())
            sender.close()
            del content
            return kept() is not None
        receiver = comm.receiver(UP, lambda tag: layouts[tag.n % 2], depth, batches(12))
        for tag in batches(12):
            assert same_bits(receiver.receive(tag), filled(layouts[tag.n % 2], tag.n)), str(tag)
            receiver.release()
        receiver.close()
        return False


@pytest.mark.parametrize("depth", [1, 3])
def test_large_tensors_arrive_as_they_were(pool: Pool, depth: int) -> None:
    assert pool.run(2, large, depth) == [False, False]


def mixed(rank: int, size: int, store_path: str) -> None:
    """Any tags may follow each other, and any memory layout may be sent."""
    tags = [
        Tag(MessageKind.ACTIVATION, 0),
        Tag(MessageKind.TEST, 0, 0),
        Tag(MessageKind.TEST, 0, 1),
        Tag(MessageKind.ACTIVATION, 1),
    ]
    layout = MessageLayout((TensorSpec((4, 6)),))
    with joined(rank, size, store_path) as comm:
        square = torch.arange(48.0).view(6, 8)
        if rank == 0:
            sender = comm.sender(UP, lambda tag: layout)
            for e, tag in enumerate(tags):
                sender.send(tag, ((square + e).t()[::2],))
            sender.close()
        else:
            receiver = comm.receiver(UP, lambda tag: layout, 1, iter(tags))
            for e, tag in enumerate(tags):
                (tensor,) = receiver.receive(tag)
                assert tensor.is_contiguous()
                assert torch.equal(tensor, torch.tensor([[8.0 * j + 2 * i + e for j in range(6)] for i in range(4)]))
                receiver.release()
            receiver.close()


def test_kinds_and_layouts(pool: Pool) -> None:
    pool.run(2, mixed)


def reuse(rank: int, size: int, store_path: str, depth: int, count: int) -> int:
    """Number of different addresses of a receiver's messages."""
    with joined(rank, size, store_path) as comm:
        places = set()
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(count):
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, depth, batches(count))
            for tag in batches(count):
                places.add(receiver.receive(tag)[0].data_ptr())
                receiver.release()
            receiver.close()
        return len(places)


@pytest.mark.parametrize("depth", [1, 3])
def test_buffers_are_a_small_ring(pool: Pool, depth: int) -> None:
    assert pool.run(2, reuse, depth, 40)[1] == depth + 1


def hold(rank: int, size: int, store_path: str, depth: int) -> None:
    """A receiver that keeps all that its buffers hold, while as much as possible is under way to it."""
    count = 3 * depth + 6
    with joined(rank, size, store_path) as comm:
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(count):
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
            return
        receiver = comm.receiver(UP, rows, depth, batches(count))
        held = [(tag.n, receiver.receive(tag)) for tag in batches(depth + 1)]
        for n in range(depth + 1, count):
            time.sleep(0.02)
            assert all(same_bits(payload, filled(ROWS, m)) for m, payload in held)
            receiver.release()
            del held[0]  # the oldest, and only that, may now be written over
            held.append((n, receiver.receive(Tag(MessageKind.ACTIVATION, n))))
        time.sleep(0.1)
        assert all(same_bits(payload, filled(ROWS, m)) for m, payload in held)
        for _ in held:
            receiver.release()
        receiver.close()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_held_messages_stay(pool: Pool, depth: int) -> None:
    pool.run(2, hold, depth)


SPARE = 3
"""Messages a channel of depth d takes beyond d while the block above takes none: one more receive buffer, which is
posted as well until a block holds a message, and the sender's two."""


def fill(rank: int, size: int, store_path: str, depth: int) -> None:
    """Count the messages a sender can send while the receiver takes none, then takes one, then releases it."""
    room = depth + SPARE
    count = room + 10
    handed: list[int] = []

    def send_all() -> None:
        for tag in batches(count):
            sender.send(tag, filled(ROWS, tag.n))
            handed.append(tag.n)

    def is_full(room: int) -> bool:
        reached = soon(lambda: len(handed) >= room)
        time.sleep(0.2)  # if it were not full, the next one would go now
        return reached and len(handed) == room

    with joined(rank, size, store_path) as comm:
        if rank == 0:
            sender = comm.sender(UP, rows)
            thread = threading.Thread(target=send_all)
            thread.start()
            assert is_full(room), handed
            comm.all_gather(None, "full")
            comm.all_gather(None, "one taken")
            assert is_full(room), handed  # it is in use: no buffer is free
            comm.all_gather(None, "one released")
            comm.all_gather(None, "room for one")
            assert is_full(room + 1), handed
            comm.all_gather(None, "go on")
            thread.join(20)
            assert handed == list(range(count))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, depth, batches(count))
            comm.all_gather(None, "full")
            first = receiver.receive(Tag(MessageKind.ACTIVATION, 0))
            assert same_bits(first, filled(ROWS, 0))
            comm.all_gather(None, "one taken")
            comm.all_gather(None, "one released")
            receiver.release()
            comm.all_gather(None, "room for one")
            comm.all_gather(None, "go on")
            for n in range(1, count):
                assert same_bits(receiver.receive(Tag(MessageKind.ACTIVATION, n)), filled(ROWS, n))
                receiver.release()
            receiver.close()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_bounds_what_is_under_way(pool: Pool, depth: int) -> None:
    pool.run(2, fill, depth)


def short(rank: int, size: int, store_path: str) -> list[str]:
    """A queue deeper than the run is long: no receive is posted that no message meets. Which threads are left."""
    before = set(threading.enumerate())  # a run that was stopped in this process left some
    with joined(rank, size, store_path) as comm:
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(2):
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, 8, batches(2))
            take(receiver, rows, batches(2))
            receiver.close()
        return [thread.name for thread in set(threading.enumerate()) - before if "edge" in thread.name]


def test_a_run_shorter_than_the_queue_leaves_nothing_behind(pool: Pool) -> None:
    assert pool.run(2, short) == [[], []]


def refuse(rank: int, size: int, store_path: str) -> list[str]:
    with joined(rank, size, store_path) as comm:
        refused = []
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(12):
                for wrong in ((torch.zeros(3, 5),), (torch.zeros(3, 6), torch.zeros(7, dtype=torch.int64)), ()):
                    try:
                        sender.send(tag, wrong)
                    except ValueError as error:
                        refused.append(str(error))
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, 2, batches(12))
            take(receiver, rows, batches(12))
            receiver.close()
        return refused


def test_tensors_of_another_layout_are_refused_and_the_channel_goes_on(pool: Pool) -> None:
    refused = pool.run(2, refuse)[0]
    agreed = "float32[3, 5], int64[7] was agreed"
    assert refused == [
        f"rank 0: activation edge 1->2: activation of batch {n}: a message of {found} where {agreed}"
        for n in range(12)
        for found in ("float32[3, 5]", "float32[3, 6], int64[7]", "nothing")
    ]


def wrong_turn(rank: int, size: int, store_path: str) -> str:
    """Ask for another message than the next one."""
    with joined(rank, size, store_path) as comm:
        text = ""
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(2):
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, 2, batches(2))
            try:
                receiver.receive(Tag(MessageKind.ACTIVATION, 1))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            receiver.close()
        return text


def test_a_program_that_asks_for_another_message(pool: Pool) -> None:
    assert pool.run(2, wrong_turn)[1] == (
        "ChannelError: rank 1: activation edge 1->2 with rank 0: activation of batch 1: activation of batch 0 is next"
    )


def drain(rank: int, size: int, store_path: str, depth: int, count: int, limit: float) -> bool:
    """Close at once after the last message; the receiver is slow. Whether the sender's close took over ``limit`` s."""
    with joined(rank, size, store_path) as comm:
        waited = False
        if rank == 0:
            sender = comm.sender(UP, rows)
            for tag in batches(count):
                sender.send(tag, filled(ROWS, tag.n))
            closing = threading.Thread(target=sender.close)
            closing.start()
            closing.join(limit)
            waited = closing.is_alive()
            comm.send_report("closing")
            closing.join(20)
            assert not closing.is_alive()
        else:
            receiver = comm.receiver(UP, rows, depth, batches(count))
            until(comm, 0)
            for tag in batches(count):
                time.sleep(0.03)
                assert same_bits(receiver.receive(tag), filled(ROWS, tag.n)), tag
                receiver.release()
            receiver.close()
        return waited


def test_close_returns_once_all_has_left(pool: Pool) -> None:
    """As many messages as posted receives leave, although no block takes them."""
    assert not pool.run(2, drain, 2, 3, 20.0)[0]


def test_close_waits_for_what_has_not_left(pool: Pool) -> None:
    assert pool.run(2, drain, 2, 5, 0.5)[0]


def late(rank: int, size: int, store_path: str) -> bool:
    """The receiver closes while its messages are still to come."""
    with joined(rank, size, store_path) as comm:
        waited = False
        if rank == 0:
            sender = comm.sender(UP, rows)
            until(comm, 1)
            for tag in batches(2):
                sender.send(tag, filled(ROWS, tag.n))
            sender.close()
        else:
            receiver = comm.receiver(UP, rows, 2, batches(2))
            closing = threading.Thread(target=receiver.close)
            closing.start()
            closing.join(0.3)
            waited = closing.is_alive()
            comm.send_report("closing")
            closing.join(20)
            assert not closing.is_alive()
            take(receiver, rows, batches(2))
        return waited


def test_a_receiver_closes_when_nothing_is_under_way(pool: Pool) -> None:
    assert pool.run(2, late)[1]


def idle(rank: int, size: int, store_path: str) -> None:
    """The target channel rests for longer than a wait may last, while activations come all the time."""
    with joined(rank, size, store_path) as comm:
        comm.watchdog.timeout = 1.0
        if rank == 0:
            targets = comm.receiver(DOWN, rows, 2, batches(1))
            sender = comm.sender(UP, rows)
            for tag in batches(25):
                time.sleep(0.1)
                sender.send(tag, filled(ROWS, tag.n))
            take(targets, rows, batches(1))
            sender.close()
            targets.close()
        else:
            activations = comm.receiver(UP, rows, 2, batches(25))
            sender = comm.sender(DOWN, rows)
            take(activations, rows, batches(25))
            sender.send(Tag(MessageKind.ACTIVATION, 0), filled(ROWS, 0))
            sender.close()
            activations.close()


def test_a_channel_without_a_wait_may_rest(pool: Pool) -> None:
    """Target channels rest during an evaluation, which may take longer than the timeout of a wait."""
    pool.run(2, idle)
