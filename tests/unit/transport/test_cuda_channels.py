"""Channels of CUDA tensors over gloo and NCCL, on a device and on wires that are none (`tests.helpers.fake_device`)."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.message import HEADER_BYTES, MessageKind, Tag, pack_header
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, MessageLayout, Payload, RemoteReceiver, RemoteSender, TensorSpec
from counterflow.transport.buffers import CudaGloo, CudaNccl, MessageBuffers
from counterflow.transport.control import Watchdog
from counterflow.transport.remote import P2PEndpoint
from tests.helpers.fake_device import LIMIT, FakeDevice, RaceError, Wire, Wires

UP, DOWN = Edge(Stream.ACTIVATION, 1), Edge(Stream.TARGET, 1)
SMALL = MessageLayout((TensorSpec((3, 5)), TensorSpec((4,), torch.int64)))
LARGE = MessageLayout((TensorSpec((700_000,)), TensorSpec((3, 5))))
KINDS: dict[str, Callable[[Any], MessageBuffers]] = {"gloo": CudaGloo, "nccl": CudaNccl}


def tags(batches: int) -> Iterator[Tag]:
    return (Tag(MessageKind.ACTIVATION, n) for n in range(batches))


def layout(tag: Tag) -> MessageLayout:
    return LARGE if tag.n % 3 == 2 else SMALL  # buffers grow on the way


def content(n: int, back: bool = False) -> Payload:
    """Message of batch ``n``; ``back``, the answer to it."""
    specs = layout(Tag(MessageKind.ACTIVATION, n)).specs
    return tuple(
        (torch.arange(spec.nbytes // spec.dtype.itemsize) * (3 if back else 1) + n).to(spec.dtype).view(spec.shape)
        for spec in specs
    )


@dataclass
class Rank:
    """One of two ranks, each with a device of its own and one edge in each direction."""

    number: int
    device: FakeDevice
    sender: RemoteSender
    receiver: RemoteReceiver

    def take(self, tag: Tag, kept: list[Payload]) -> Payload:
        """Receive a message, of which a kernel makes a copy on the device; it runs late."""
        message = self.receiver.receive(tag)
        copies = tuple(self.device.own(torch.full_like(tensor, -1)) for tensor in message)
        for copy, tensor in zip(copies, message, strict=True):
            self.device.launch("kernel", lambda c=copy, t=tensor: c.copy_(t), reads=[tensor], writes=[copy])
        self.receiver.release()
        kept.append(copies)
        return copies

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.device.synchronize()


Connect = Callable[..., tuple[Rank, Rank]]


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Connects two ranks; what still waits at the end of the test ends then."""
    made: list[Wires] = []

    def connect(*args: Any, **options: Any) -> tuple[Rank, Rank]:
        made.append(wires := Wires(args[0]))
        monkeypatch.setattr(dist, "isend", wires.isend)
        monkeypatch.setattr(dist, "irecv", wires.irecv)
        return two_ranks(*args, **options)

    yield connect
    for wires in made:
        wires.close()


def two_ranks(
    backend: str,
    batches: int,
    kind: Callable[[Any], MessageBuffers] | None = None,
    depth: int = 2,
    limit: float = LIMIT,
) -> tuple[Rank, Rank]:
    low = FakeDevice()
    high = FakeDevice(low.lock)
    up, down = Wire(low, high), Wire(high, low)

    def rank(number: int, device: FakeDevice, out: tuple[Edge, Wire], back: tuple[Edge, Wire]) -> Rank:
        buffers, watchdog = (kind or KINDS[backend])(device), Watchdog(limit)
        ends = [
            P2PEndpoint(edge, number, 1 - number, layout, buffers, watchdog, (wire, device))  # type: ignore[arg-type]
            for edge, wire in (out, back)
        ]
        return Rank(number, device, RemoteSender(ends[0]), RemoteReceiver(ends[1], depth, tags(batches)))

    return rank(0, low, (UP, up), (DOWN, down)), rank(1, high, (DOWN, down), (UP, up))


def run_both(tasks: list[Callable[[], None]]) -> None:
    """Run each rank on a thread; raises what one of them raised first."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 2 * LIMIT
    while any(thread.is_alive() for thread in threads) and not errors and time.monotonic() < deadline:
        time.sleep(1e-3)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank did not end"


def echo(ranks: tuple[Rank, Rank], batches: int) -> tuple[list[Payload], list[Payload]]:
    """Every batch goes up, from tensors that are overwritten for the next, and three times as much minus twice ``n``
    comes down; the next batch goes up after it. What the two ranks took."""
    low, high = ranks
    taken: tuple[list[Payload], list[Payload]] = [], []

    def below() -> None:
        reused = {shape: low.device.own(torch.zeros(shape)) for shape in ((3, 5), (700_000,))}
        for tag in tags(batches):
            message = []
            for tensor in content(tag.n):
                place = reused[tuple(tensor.shape)] if tensor.is_floating_point() else low.device.own(tensor.clone())
                low.device.launch("kernel", lambda p=place, t=tensor: p.copy_(t), writes=[place])
                message.append(place)
            low.sender.send(tag, tuple(message))
            low.take(tag, taken[0])
        low.close()

    def above() -> None:
        for tag in tags(batches):
            found = high.take(tag, taken[1])
            answer = tuple(high.device.own(torch.empty_like(tensor)) for tensor in found)
            for a, f in zip(answer, found, strict=True):
                high.device.launch("kernel", lambda a=a, f=f, n=tag.n: a.copy_(3 * (f - n) + n), reads=[f], writes=[a])
            high.sender.send(tag, answer)
        high.close()

    run_both([below, above])
    return taken


def same(found: list[Payload], expected: list[Payload]) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("backend", KINDS)
def test_messages_cross_as_they_were_written(connected: Connect, backend: str, depth: int) -> None:
    below, above = echo(connected(backend, 7, depth=depth), 7)
    assert same(above, [content(n) for n in range(7)])
    assert same(below, [content(n, back=True) for n in range(7)])


@pytest.mark.parametrize("backend", KINDS)
def test_a_sender_may_run_ahead_of_its_receiver(connected: Connect, backend: str) -> None:
    low, high = connected(backend, 5)
    taken: list[Payload] = []

    def below() -> None:
        source = low.device.own(torch.zeros(4, dtype=torch.int64))
        for tag in tags(5):
            first, *others = content(tag.n)
            second = source if layout(tag) is SMALL else low.device.own(others[0])
            if second is source:
                low.device.launch("kernel", lambda n=tag.n: source.copy_(content(n)[1]), writes=[source])
            low.sender.send(tag, (low.device.own(first), second))
        low.sender.close()

    def above() -> None:
        for tag in tags(5):
            time.sleep(0.02)
            high.take(tag, taken)
        high.receiver.close()
        high.device.synchronize()

    run_both([below, above])
    assert same(taken, [content(n) for n in range(5)])


class SendsAtOnce(CudaGloo):
    """Does not wait for the copy into pinned memory."""

    def send(self, piece: Tensor, written: Any, rank: int, group: Any) -> dist.Work:
        return MessageBuffers.send(self, piece, written, rank, group)


class ReturnsEarly(CudaGloo):
    """Does not wait for the copies out of pinned memory."""

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        with self._device.aside():
            tensors = tuple(self._device.upload(view) for view in layout.views(buffer))
        for tensor in tensors:
            self._device.lend(tensor)
        return tensors


class LendsNothing(CudaGloo):
    """Leaves the memory of received tensors to the side stream alone."""

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        with self._device.aside():
            tensors = tuple(self._device.upload(view) for view in layout.views(buffer))
            self._device.synchronize()
        return tensors


class SendsUnordered(CudaNccl):
    """Does not order NCCL behind the copy into the buffer."""

    def send(self, piece: Tensor, written: Any, rank: int, group: Any) -> dist.Work:
        with self._device.aside():
            return MessageBuffers.send(self, piece, written, rank, group)


class NeverCompletes(CudaNccl):
    """Takes ``Work.wait`` for the end of an operation: it orders streams alone."""

    def complete(self, work: dist.Work, timeout: float) -> None:
        work.wait()


@pytest.mark.parametrize("broken", [SendsAtOnce, ReturnsEarly, LendsNothing, SendsUnordered, NeverCompletes])
def test_what_is_not_ordered_is_found(connected: Connect, broken: Any) -> None:
    ranks = connected("gloo" if issubclass(broken, CudaGloo) else "nccl", 4, broken, limit=2.0)
    with pytest.raises((RaceError, ChannelError), match=r"is not done|was not lent"):
        echo(ranks, 4)


class WaitsOnTheSideStream(CudaNccl):
    """Puts the wait for an unfinished operation on the stream that all edges share."""

    def complete(self, work: dist.Work, timeout: float) -> None:
        with self._device.aside():
            work.wait()
            done = self._device.record()
        deadline = time.monotonic() + 2.0
        while not done.query():
            if time.monotonic() > deadline:
                raise RuntimeError("no completion")
            time.sleep(5e-5)


def test_a_receive_under_way_does_not_hold_up_sends(connected: Connect) -> None:
    """The message that this rank awaits is the answer to one that it has not sent: a lock if sends queue up behind."""
    with pytest.raises(ChannelError):
        echo(connected("nccl", 3, WaitsOnTheSideStream, limit=1.0), 3)
    echo(connected("nccl", 3), 3)


def test_a_header_does_not_wait_for_the_blocks() -> None:
    """To start a message costs the thread that computes no wait for the kernels that it has started."""
    for kind in KINDS.values():
        device = FakeDevice()
        buffers = kind(device)
        device.launch("kernel", lambda: None, milliseconds=1.0)
        tensors = tuple(map(device.own, content(0)))
        header = pack_header(Tag(MessageKind.ACTIVATION, 0), SMALL.payload_nbytes)
        pieces, written = buffers.load(buffers.buffer(SMALL.nbytes), SMALL, header, tensors)
        assert device.clock == 0.0
        assert written is not None
        written.synchronize()
        assert device.clock == 1.0
        assert bytes(pieces[0][:HEADER_BYTES].numpy()) == header


def test_an_nccl_operation_has_a_limit_and_an_error() -> None:
    class Never:
        def is_completed(self) -> bool:
            return False

    class Failed:
        def is_completed(self) -> bool:
            return True

        def wait(self) -> bool:
            raise RuntimeError("NCCL communicator was aborted")

    buffers = CudaNccl(FakeDevice())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"^no completion within 0\.01 s$"):
        buffers.complete(Never(), 0.01)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="aborted"):
        buffers.complete(Failed(), 1.0)  # type: ignore[arg-type]


def test_gloo_sends_pinned_memory_and_nccl_the_device_s() -> None:
    for kind, pinned in ((CudaGloo, 1), (CudaNccl, 0)):
        device = FakeDevice()
        kind(device).buffer(64)  # type: ignore[arg-type]
        assert len(device.pinned_memory) == pinned
