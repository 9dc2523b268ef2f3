"""Both ends of an edge between processes, on torch.distributed point-to-point operations.

A gloo send ends when a posted receive has taken it, and only a wait completes it. So every end has one thread that
waits. The thread that computes only starts operations, so that one is under way while the blocks compute. The receiver
posts receives ahead, which limits the messages under way: a sender waits when two of its messages have not left yet.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from counterflow.message import MessageError, Tag, check_header, pack_header
from counterflow.topology import Edge
from counterflow.transport.buffers import Loaded, MessageBuffers, MessageLayout, started
from counterflow.transport.channel import ChannelError, Payload, gloo_reason
from counterflow.transport.control import Watchdog

FOREVER = 1e7
"""Seconds that the thread of a channel waits."""


@dataclass(frozen=True)
class Endpoint:
    """One end of an edge between processes, whatever carries its messages."""

    edge: Edge
    rank: int
    """This process."""
    peer: int
    """The process at the other end."""
    layouts: Callable[[Tag], MessageLayout]
    buffers: MessageBuffers
    watchdog: Watchdog

    def layout(self, tag: Tag, tensors: Payload) -> MessageLayout:
        """Layout of message ``tag``. Raises ``ValueError`` if ``tensors`` do not match it."""
        layout = self.layouts(tag)
        try:
            layout.check(tensors)
        except ValueError as error:
            raise ValueError(f"rank {self.rank}: {self.edge}: {tag}: {error}") from None
        return layout

    def grown(self, buffer: Tensor, nbytes: int) -> Tensor:
        """``buffer``, or a new one if it has less than ``nbytes`` bytes."""
        return buffer if buffer.numel() >= nbytes else self.buffers.buffer(nbytes)

    def sending(self, what: object) -> str:
        """Name of a wait of the sending end, for errors."""
        return f"rank {self.rank}: {self.edge} to rank {self.peer}: {what}"

    def receiving(self, what: object) -> str:
        """Name of a wait of the receiving end, for errors."""
        return f"rank {self.rank}: {self.edge} from rank {self.peer}: {what}"

    def error(self, what: object) -> ChannelError:
        return ChannelError(f"rank {self.rank}: {self.edge} with rank {self.peer}: {what}")

    def start_thread(self, work: Callable[[], None]) -> threading.Thread:
        """Run ``work`` on a thread; an exception ends all waits of the process, as it would otherwise be lost."""

        def guarded() -> None:
            try:
                work()
            except ChannelError as error:
                self.watchdog.fail(error)
            except Exception as error:
                self.watchdog.fail(self.error(repr(error)))

        thread = threading.Thread(target=guarded, name=str(self.edge), daemon=True)
        thread.start()
        return thread


@dataclass(frozen=True)
class P2PEndpoint(Endpoint):
    """One end of an edge with a process group of its own."""

    group: dist.ProcessGroup
    """Group of the two ends alone; no other edge uses it."""

    def complete(self, work: dist.Work, tag: Tag) -> None:
        """Wait for ``work`` as long as the peer lives; raises `ChannelError` if it is lost.

        A channel may rest for as long as an evaluation takes. Only waits of the blocks have a limit, in the watchdog.
        """
        try:
            self.buffers.complete(work, FOREVER)
        except RuntimeError as error:
            raise self.lost(tag, error) from error

    def lost(self, tag: Tag, error: RuntimeError) -> ChannelError:
        """The error for the lost peer, or for what ended it."""
        return self.watchdog.find_cause(self.error(f"{tag}: lost rank {self.peer} ({gloo_reason(error)})"))

    def join(self, thread: threading.Thread) -> None:
        thread.join(self.watchdog.timeout)
        if thread.is_alive():
            raise self.error("its thread did not end")


_SENDING = 2
"""Messages of a sender that may be under way."""


class RemoteSender:
    """Sends from a ring of two buffers: one is filled while the other one is under way."""

    def __init__(self, endpoint: P2PEndpoint) -> None:
        self.endpoint = endpoint
        self._free: queue.SimpleQueue[Tensor] = endpoint.watchdog.inbox()
        for _ in range(_SENDING):
            self._free.put(endpoint.buffers.buffer(0))
        self._started: queue.SimpleQueue[tuple[Tag, Tensor, Loaded, list[dist.Work]] | None] = queue.SimpleQueue()
        self._last: Tag | str = "nothing"
        self._thread = endpoint.start_thread(self._run)

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Return before the message has left. Raises ``ValueError`` if ``tensors`` do not match the layout."""
        endpoint = self.endpoint
        layout = endpoint.layout(tag, tensors)
        free = endpoint.watchdog.take(self._free, lambda: endpoint.sending(f"room for {tag}"))
        buffer = endpoint.grown(free, endpoint.buffers.load_nbytes(layout))
        loaded = endpoint.buffers.load(buffer, layout, pack_header(tag, layout.payload_nbytes), tensors)
        self._started.put((tag, buffer, loaded, self._start(tag, loaded) if endpoint.buffers.starts_at_once else []))
        self._last = tag

    def _start(self, tag: Tag, loaded: Loaded) -> list[dist.Work]:
        endpoint, (pieces, written) = self.endpoint, loaded
        try:
            return [endpoint.buffers.send(piece, written, endpoint.peer, endpoint.group) for piece in pieces]
        except RuntimeError as error:
            raise endpoint.lost(tag, error) from error

    def _run(self) -> None:
        while (message := self._started.get()) is not None:
            tag, buffer, loaded, works = message
            for work in works or self._start(tag, loaded):
                self.endpoint.complete(work, tag)
            self._free.put(buffer)
            del message, loaded, works, work  # or this thread would hold their tensors until the next message

    def state(self) -> str:
        in_flight = _SENDING - self._free.qsize()
        return f"{self.endpoint.edge} to rank {self.endpoint.peer}: {self._last} was sent last, {in_flight} under way"

    def close(self) -> None:
        for _ in range(_SENDING):
            self.endpoint.watchdog.take(self._free, lambda: self.endpoint.sending("last messages"))
        self._started.put(None)
        self.endpoint.join(self._thread)


class RemoteReceiver:
    """Receives into a ring of ``depth`` posted buffers, and one more for the message that a block holds.

    ``tags`` is every message that will ever come, in order: no receive is posted without a message to meet it.
    """

    def __init__(self, endpoint: P2PEndpoint, depth: int, tags: Iterator[Tag]) -> None:
        self.endpoint = endpoint
        self._free = deque(endpoint.buffers.buffer(0) for _ in range(depth + 1))
        self._tags = tags
        self._posted: queue.SimpleQueue[tuple[Tag, Tensor, list[dist.Work]] | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[Tag, Tensor, Payload]] = endpoint.watchdog.inbox()
        self._held: deque[Tensor] = deque()
        self._awaited = 0
        """Messages for which a receive was posted, and which the blocks have not received."""
        self._last: Tag | str = "nothing"
        while self._free and self._post():
            pass
        self._thread = endpoint.start_thread(self._run)

    def _post(self) -> bool:
        """Post a receive for the next message, if there is one."""
        endpoint = self.endpoint
        tag = next(self._tags, None)
        if tag is None:
            return False
        layout = endpoint.layouts(tag)
        buffer = endpoint.grown(self._free.popleft(), layout.nbytes)
        try:
            works = [started(dist.irecv(buffer[piece], endpoint.peer, group=endpoint.group)) for piece in layout.pieces]
        except RuntimeError as error:
            raise endpoint.lost(tag, error) from error
        self._awaited += 1
        self._posted.put((tag, buffer, works))
        return True

    def _run(self) -> None:
        endpoint = self.endpoint
        while (message := self._posted.get()) is not None:
            tag, buffer, works = message
            for work in works:
                endpoint.complete(work, tag)
            layout = endpoint.layouts(tag)
            try:
                check_header(endpoint.buffers.header(buffer), tag, layout.payload_nbytes)
            except MessageError as error:
                raise endpoint.error(f"{tag}: {error}") from error
            self._arrived.put((tag, buffer, endpoint.buffers.read(buffer, layout)))

    def _take(self, tag: Tag | None = None) -> tuple[Tag, Tensor, Payload]:
        """Wait for the next message; ``tag`` is the expected one, or None when the channel closes."""
        message: tuple[Tag, Tensor, Payload] = self.endpoint.watchdog.take(
            self._arrived, lambda: self.endpoint.receiving(f"waiting for {tag}" if tag else "last messages")
        )
        return message

    def receive(self, tag: Tag) -> Payload:
        found, buffer, payload = self._take(tag)
        self._awaited -= 1
        if found != tag:
            raise self.endpoint.error(f"{tag}: {found} is next")
        self._held.append(buffer)
        self._last = tag
        return payload

    def release(self) -> None:
        self._free.append(self._held.popleft())
        self._post()

    def state(self) -> str:
        here = self._arrived.qsize()
        return (
            f"{self.endpoint.edge} from rank {self.endpoint.peer}: {self._last} was taken last, "
            f"{here} more here, {self._awaited - here} awaited"
        )

    def close(self) -> None:
        for message in [self._take() for _ in range(self._awaited)]:
            self._arrived.put(message)  # it may still be received
        self._posted.put(None)
        self.endpoint.join(self._thread)
