"""Two or three processes joined by real channels over gloo, for tests of the transport."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from counterflow.message import MessageKind, Tag
from counterflow.topology import Edge, Stream, Topology
from counterflow.transport import Communicator, MessageLayout, Receiver, TensorSpec, connect

UP = Edge(Stream.ACTIVATION, 1)
"""From rank 0 to rank 1."""
DOWN = Edge(Stream.TARGET, 1)
"""From rank 1 to rank 0."""

ROWS = MessageLayout((TensorSpec((3, 5)), TensorSpec((7,), torch.int64)))


def rows(_: Tag) -> MessageLayout:
    return ROWS


def batches(count: int) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(count))


def filled(layout: MessageLayout, n: int) -> tuple[torch.Tensor, ...]:
    """Tensors of ``layout`` that are a function of ``n`` alone: random bits, so that floats may be anything."""
    generator = torch.Generator().manual_seed(n)
    tensors = []
    for spec in layout.specs:
        high = 2 if spec.dtype == torch.bool else 256
        raw = torch.randint(high, (spec.nbytes,), dtype=torch.uint8, generator=generator)
        tensors.append(raw.view(spec.dtype).view(spec.shape))
    return tuple(tensors)


def same_bits(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    """Equal types, shapes and bits; nan equals itself."""
    return [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in expected] and all(
        torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))
        for a, b in zip(found, expected, strict=True)
    )


def join(rank: int, size: int, store_path: str, timeout: float = 20.0) -> Communicator:
    """Communicator with one block a rank and all edges open. ``timeout``, in seconds, is for waits of channels."""
    comm = connect(dist.FileStore(store_path, size), rank, size, timeout=60)
    comm.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    comm.all_gather(None, "the start")
    comm.watchdog.timeout = timeout
    return comm


@contextmanager
def joined(rank: int, size: int, store_path: str, timeout: float = 20.0) -> Iterator[Communicator]:
    """`join` for processes of the pool, which go on: closed once all ranks are done."""
    comm = join(rank, size, store_path, timeout)
    yield comm
    comm.all_gather(None, "the end")
    comm.close()


def until(comm: Communicator, rank: int, i: int = 0) -> None:
    """Wait for report ``i`` of ``rank``; only one rank may wait for it."""
    end = time.monotonic() + 30
    while comm.poll_report(rank, i) is None:
        assert time.monotonic() < end, f"rank {rank} sends no report {i}"
        time.sleep(0.01)


def soon(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until ``true()``; False if it is not within ``seconds``."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def take(receiver: Receiver, layout: Callable[[Tag], MessageLayout], tags: Iterator[Tag]) -> None:
    """Receive and release all of ``tags``, each with the content that `filled` gives it."""
    for tag in tags:
        assert same_bits(receiver.receive(tag), filled(layout(tag), tag.n)), tag
        receiver.release()


def log(what: str, action: Callable[[], object]) -> None:
    """Run ``action``; print one line on stderr with its result or error, and its seconds."""
    start = time.monotonic()
    try:
        ended = f"returned {action()}"
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    print(f"LOGGED {what} {time.monotonic() - start:.2f} {ended}", file=sys.stderr, flush=True)
