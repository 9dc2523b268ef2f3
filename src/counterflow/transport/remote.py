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
from counterflow.transport.channel import ChannelError, Payload, gloo_reason
from counterflow.transport.joint import Joint
from counterflow.transport.medium import Loaded, posted

_FOREVER = 1e7
"""Seconds that the thread of a channel waits."""


@dataclass(frozen=True)
class Wire(Joint):
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

    def __init__(self, wire: Wire, work: Callable[[], None]) -> None:
        self.wire = wire
        self._thread = threading.Thread(target=self._guard, args=(work,), name=str(wire.edge), daemon=True)

    def _grown(self, buffer: Tensor, nbytes: int) -> Tensor:
        """``buffer``, made anew if it is too small: a ring grows to the messages that come."""
        return buffer if buffer.numel() >= nbytes else self.wire.medium.buffer(nbytes)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ChannelError as error:
            self.wire.watch.fail(error)
        except Exception as error:  # a waiting thread must never die silently: whoever waits for it would hang
            self.wire.watch.fail(ChannelError(f"rank {self.wire.rank}: {self.wire.edge}: {error!r}"))

    def _join(self) -> None:
        self._thread.join(self.wire.watch.timeout)
        if self._thread.is_alive():
            raise ChannelError(f"rank {self.wire.rank}: {self.wire.edge}: its thread did not end")


_SENDING = 2
"""Messages of a sender that may be under way."""


class RemoteSender(_End):
    """A ring of buffers: one is filled while the other one is under way."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, self._run)
        self._free: queue.SimpleQueue[Tensor] = wire.watch.inbox()
        for _ in range(_SENDING):
            self._free.put(wire.medium.buffer(0))
        self._started: queue.SimpleQueue[tuple[Tag, Tensor, Loaded, list[dist.Work]] | None] = queue.SimpleQueue()
        self._last: Tag | str = "nothing"
        self._thread.start()

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Returns before the message has left. Raises ``ValueError`` for tensors not agreed on."""
        wire = self.wire
        frame = wire.frame(tag, tensors)
        free = wire.watch.take(self._free, lambda: wire.sending(f"room for {tag}"))
        buffer = self._grown(free, wire.medium.room(frame))
        loaded = wire.medium.load(buffer, frame, pack_header(tag, frame.payload_nbytes), tensors)
        self._started.put((tag, buffer, loaded, self._start(tag, loaded) if wire.medium.starts_at_once else []))
        self._last = tag

    def _start(self, tag: Tag, loaded: Loaded) -> list[dist.Work]:
        wire, (pieces, written) = self.wire, loaded
        try:
            return [wire.medium.send(piece, written, wire.peer, wire.group) for piece in pieces]
        except RuntimeError as error:
            raise wire.lost(tag, error) from error

    def _run(self) -> None:
        wire = self.wire
        while (message := self._started.get()) is not None:
            tag, buffer, loaded, works = message
            works = works or self._start(tag, loaded)
            for work in works:
                wire.complete(work, tag)
            self._free.put(buffer)
            del message, loaded, works, work  # tensors that a block would otherwise hold until the next message

    def state(self) -> str:
        max_in_flight = _SENDING - self._free.qsize()
        return f"{self.wire.edge} to rank {self.wire.peer}: {self._last} was sent last, {max_in_flight} under way"

    def close(self) -> None:
        wire = self.wire
        for _ in range(_SENDING):
            wire.watch.take(self._free, lambda: wire.sending("last messages"))
        self._started.put(None)
        self._join()


class RemoteReceiver(_End):
    """``depth`` receives posted ahead, and one more buffer for the message in the block's hands.

    ``tags`` is everything that will ever come, in order: no receive is posted that no message will meet.
    """

    def __init__(self, wire: Wire, depth: int, tags: Iterator[Tag]) -> None:
        super().__init__(wire, self._run)
        self._free = deque(wire.medium.buffer(0) for _ in range(depth + 1))
        self._tags = tags
        self._posted: queue.SimpleQueue[tuple[Tag, Tensor, list[dist.Work]] | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[Tag, Tensor, Payload]] = wire.watch.inbox()
        self._held: deque[Tensor] = deque()
        self._awaited = 0
        """Messages that were posted and not received."""
        self._last: Tag | str = "nothing"
        while self._free and self._post():
            pass
        self._thread.start()

    def _post(self) -> bool:
        """Post a receive for the next message, if there is one."""
        wire = self.wire
        tag = next(self._tags, None)
        if tag is None:
            return False
        frame = wire.frames(tag)
        buffer = self._grown(self._free.popleft(), frame.nbytes)
        try:
            works = [posted(dist.irecv(buffer[piece], wire.peer, group=wire.group)) for piece in frame.pieces]
        except RuntimeError as error:
            raise wire.lost(tag, error) from error
        self._awaited += 1
        self._posted.put((tag, buffer, works))
        return True

    def _run(self) -> None:
        wire = self.wire
        while (message := self._posted.get()) is not None:
            tag, buffer, works = message
            for work in works:
                wire.complete(work, tag)
            frame = wire.frames(tag)
            try:
                check_header(wire.medium.header(buffer), tag, frame.payload_nbytes)
            except MessageError as error:
                raise wire.error(tag, str(error)) from error
            payload = wire.medium.read(buffer, frame)
            self._arrived.put((tag, buffer, payload))

    def receive(self, tag: Tag) -> Payload:
        wire = self.wire
        taken: tuple[Tag, Tensor, Payload] = wire.watch.take(
            self._arrived, lambda: wire.receiving(f"waiting for {tag}")
        )
        found, buffer, payload = taken
        self._awaited -= 1
        if found != tag:
            raise wire.error(tag, f"{found} is next")
        self._held.append(buffer)
        self._last = tag
        return payload

    def release(self) -> None:
        self._free.append(self._held.popleft())
        self._post()

    def state(self) -> str:
        here = self._arrived.qsize()
        return (
            f"{self.wire.edge} from rank {self.wire.peer}: {self._last} was taken last, "
            f"{here} more here, {self._awaited - here} awaited"
        )

    def close(self) -> None:
        wire = self.wire
        rest = [wire.watch.take(self._arrived, lambda: wire.receiving("last messages")) for _ in range(self._awaited)]
        for message in rest:  # which may still be received
            self._arrived.put(message)
        self._posted.put(None)
        self._join()
