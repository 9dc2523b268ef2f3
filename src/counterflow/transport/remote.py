"""The two ends of an edge between processes, on torch.distributed point-to-point operations.

A gloo send is a rendezvous, and only a wait completes it. So every end has one thread that waits, and the thread that
computes never does while there is room: it only starts operations, so that one is under way while another one is waited
for. Credits are receives that the receiver has posted ahead: a sender's message leaves when a posted receive takes it,
and the next but one `send` waits until then.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from counterflow.message import MessageError, Tag, check_header, pack_header
from counterflow.transport.buffers import Loaded, posted
from counterflow.transport.channel import ChannelError, Payload, gloo_reason
from counterflow.transport.endpoint import Endpoint

_FOREVER = 1e7
"""Seconds that the thread of a channel waits."""


@dataclass(frozen=True)
class P2PEndpoint(Endpoint):
    """What both ends of a remote edge share."""

    group: dist.ProcessGroup
    """Of these two alone; neither end shares it with another edge."""

    def complete(self, work: dist.Work, tag: Tag) -> None:
        """Wait for ``work`` as long as the peer lives; raises `ChannelError` if it is lost.

        A channel may rest for as long as an evaluation takes. Only waits of the program have a limit, in the watch.
        """
        try:
            self.medium.complete(work, _FOREVER)
        except RuntimeError as error:
            raise self.lost(tag, error) from error

    def lost(self, tag: Tag, error: RuntimeError) -> ChannelError:
        return self.error(tag, f"lost rank {self.peer} ({gloo_reason(error)})")


class _End:
    """An end's waiting thread."""

    def __init__(self, endpoint: P2PEndpoint, work: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self._thread = threading.Thread(target=self._guard, args=(work,), name=str(endpoint.edge), daemon=True)

    def _grown(self, buffer: Tensor, nbytes: int) -> Tensor:
        """``buffer``, made anew if it is too small: a ring grows to the messages that come."""
        return buffer if buffer.numel() >= nbytes else self.endpoint.medium.buffer(nbytes)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ChannelError as error:
            self.endpoint.watch.fail(error)
        except Exception as error:  # a waiting thread must never die silently: whoever waits for it would hang
            self.endpoint.watch.fail(ChannelError(f"rank {self.endpoint.rank}: {self.endpoint.edge}: {error!r}"))

    def _join(self) -> None:
        self._thread.join(self.endpoint.watch.timeout)
        if self._thread.is_alive():
            raise ChannelError(f"rank {self.endpoint.rank}: {self.endpoint.edge}: its thread did not end")


_SENDING = 2
"""Messages of a sender that may be under way."""


class RemoteSender(_End):
    """A ring of buffers: one is filled while the other one is under way."""

    def __init__(self, endpoint: P2PEndpoint) -> None:
        super().__init__(endpoint, self._run)
        self._free: queue.SimpleQueue[Tensor] = endpoint.watch.inbox()
        for _ in range(_SENDING):
            self._free.put(endpoint.medium.buffer(0))
        self._started: queue.SimpleQueue[tuple[Tag, Tensor, Loaded, list[dist.Work]] | None] = queue.SimpleQueue()
        self._last: Tag | str = "nothing"
        self._thread.start()

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Returns before the message has left. Raises ``ValueError`` for tensors not agreed on."""
        endpoint = self.endpoint
        layout = endpoint.layout(tag, tensors)
        free = endpoint.watch.take(self._free, lambda: endpoint.sending(f"room for {tag}"))
        buffer = self._grown(free, endpoint.medium.room(layout))
        loaded = endpoint.medium.load(buffer, layout, pack_header(tag, layout.payload_nbytes), tensors)
        self._started.put((tag, buffer, loaded, self._start(tag, loaded) if endpoint.medium.starts_at_once else []))
        self._last = tag

    def _start(self, tag: Tag, loaded: Loaded) -> list[dist.Work]:
        endpoint, (pieces, written) = self.endpoint, loaded
        try:
            return [endpoint.medium.send(piece, written, endpoint.peer, endpoint.group) for piece in pieces]
        except RuntimeError as error:
            raise endpoint.lost(tag, error) from error

    def _run(self) -> None:
        endpoint = self.endpoint
        while (message := self._started.get()) is not None:
            tag, buffer, loaded, works = message
            works = works or self._start(tag, loaded)
            for work in works:
                endpoint.complete(work, tag)
            self._free.put(buffer)
            del message, loaded, works, work  # tensors that a block would otherwise hold until the next message

    def state(self) -> str:
        max_in_flight = _SENDING - self._free.qsize()
        return (
            f"{self.endpoint.edge} to rank {self.endpoint.peer}: {self._last} was sent last, {max_in_flight} under way"
        )

    def close(self) -> None:
        endpoint = self.endpoint
        for _ in range(_SENDING):
            endpoint.watch.take(self._free, lambda: endpoint.sending("last messages"))
        self._started.put(None)
        self._join()


class RemoteReceiver(_End):
    """``depth`` receives posted ahead, and one more buffer for the message in the block's hands.

    ``tags`` is everything that will ever come, in order: no receive is posted that no message will meet.
    """

    def __init__(self, endpoint: P2PEndpoint, depth: int, tags: Iterator[Tag]) -> None:
        super().__init__(endpoint, self._run)
        self._free = deque(endpoint.medium.buffer(0) for _ in range(depth + 1))
        self._tags = tags
        self._posted: queue.SimpleQueue[tuple[Tag, Tensor, list[dist.Work]] | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[Tag, Tensor, Payload]] = endpoint.watch.inbox()
        self._held: deque[Tensor] = deque()
        self._awaited = 0
        """Messages that were posted and not received."""
        self._last: Tag | str = "nothing"
        while self._free and self._post():
            pass
        self._thread.start()

    def _post(self) -> bool:
        """Post a receive for the next message, if there is one."""
        endpoint = self.endpoint
        tag = next(self._tags, None)
        if tag is None:
            return False
        layout = endpoint.layouts(tag)
        buffer = self._grown(self._free.popleft(), layout.nbytes)
        try:
            works = [posted(dist.irecv(buffer[piece], endpoint.peer, group=endpoint.group)) for piece in layout.pieces]
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
                check_header(endpoint.medium.header(buffer), tag, layout.payload_nbytes)
            except MessageError as error:
                raise endpoint.error(tag, str(error)) from error
            payload = endpoint.medium.read(buffer, layout)
            self._arrived.put((tag, buffer, payload))

    def receive(self, tag: Tag) -> Payload:
        endpoint = self.endpoint
        taken: tuple[Tag, Tensor, Payload] = endpoint.watch.take(
            self._arrived, lambda: endpoint.receiving(f"waiting for {tag}")
        )
        found, buffer, payload = taken
        self._awaited -= 1
        if found != tag:
            raise endpoint.error(tag, f"{found} is next")
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
        endpoint = self.endpoint
        rest = [
            endpoint.watch.take(self._arrived, lambda: endpoint.receiving("last messages"))
            for _ in range(self._awaited)
        ]
        for message in rest:  # which may still be received
            self._arrived.put(message)
        self._posted.put(None)
        self._join()
