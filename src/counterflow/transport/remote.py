"""The two ends of an edge between processes, on torch.distributed point-to-point operations.

A gloo send is a rendezvous, and only a wait completes it. So every end has one thread that waits, and the thread that
computes never does while there is room. Credits are receives that the receiver has posted ahead: a sender's message
leaves when a posted receive takes it, and the next but one `send` waits until then.
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
    """An end's ring of buffers and its waiting thread."""

    def __init__(self, wire: Wire, buffers: int, work: Callable[[], None]) -> None:
        self.wire = wire
        self._free: deque[Tensor] = deque(wire.medium.buffer(0) for _ in range(buffers))
        self._thread = threading.Thread(target=self._guard, args=(work,), name=str(wire.edge), daemon=True)

    def _take(self, nbytes: int) -> Tensor:
        """A free buffer, made anew if it is too small: the ring grows to the messages that come."""
        buffer = self._free.popleft()
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


class RemoteSender(_End):
    """Two buffers: one is filled while the other one is under way."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, 2, self._run)
        self._outbox: queue.SimpleQueue[tuple[Tag, Tensor, Loaded] | None] = queue.SimpleQueue()
        self._pending = 0
        self._last: Tag | str = "nothing"
        self._thread.start()

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Returns before the message has left. Raises ``ValueError`` for tensors not agreed on."""
        wire = self.wire
        frame = wire.frame(tag, tensors)
        wire.watch.wait(lambda: self._free, f"rank {wire.rank}: {wire.edge} to rank {wire.peer}: room for {tag}")
        with wire.watch:
            buffer = self._take(wire.medium.room(frame))
            self._pending += 1
        loaded = wire.medium.load(buffer, frame, pack_header(tag, frame.payload_nbytes), tensors)
        self._outbox.put((tag, buffer, loaded))
        self._last = tag

    def _run(self) -> None:
        wire = self.wire
        while (message := self._outbox.get()) is not None:
            tag, buffer, (pieces, written) = message
            try:
                works = [wire.medium.send(piece, written, wire.peer, wire.group) for piece in pieces]
            except RuntimeError as error:
                raise wire.lost(tag, error) from error
            for work in works:
                wire.complete(work, tag)
            with wire.watch:
                self._free.append(buffer)
                self._pending -= 1
            del message, pieces, works, work  # tensors that a block would otherwise hold until the next message

    def state(self) -> str:
        return f"{self.wire.edge} to rank {self.wire.peer}: {self._last} was sent last, {self._pending} under way"

    def close(self) -> None:
        wire = self.wire
        wire.watch.wait(lambda: not self._pending, f"rank {wire.rank}: {wire.edge} to rank {wire.peer}: last messages")
        self._outbox.put(None)
        self._join()


class RemoteReceiver(_End):
    """``depth`` receives posted ahead, and one more buffer for the message in the block's hands.

    ``tags`` is everything that will ever come, in order: no receive is posted that no message will meet.
    """

    def __init__(self, wire: Wire, depth: int, tags: Iterator[Tag]) -> None:
        super().__init__(wire, depth + 1, self._run)
        self._tags = tags
        self._posted: queue.SimpleQueue[tuple[Tag, Tensor, list[dist.Work]] | None] = queue.SimpleQueue()
        self._arrived: deque[tuple[Tag, Tensor, Payload]] = deque()
        self._held: deque[Tensor] = deque()
        self._under_way = 0
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
        buffer = self._take(frame.nbytes)
        try:
            works = [posted(dist.irecv(buffer[piece], wire.peer, group=wire.group)) for piece in frame.pieces]
        except RuntimeError as error:
            raise wire.lost(tag, error) from error
        with wire.watch:
            self._under_way += 1
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
            with wire.watch:
                self._arrived.append((tag, buffer, payload))
                self._under_way -= 1

    def receive(self, tag: Tag) -> Payload:
        wire = self.wire
        wire.watch.wait(
            lambda: self._arrived, f"rank {wire.rank}: {wire.edge} from rank {wire.peer}: waiting for {tag}"
        )
        with wire.watch:
            found, buffer, payload = self._arrived.popleft()
        if found != tag:
            raise wire.error(tag, f"{found} is next")
        self._held.append(buffer)
        self._last = tag
        return payload

    def release(self) -> None:
        self._free.append(self._held.popleft())
        self._post()

    def state(self) -> str:
        return (
            f"{self.wire.edge} from rank {self.wire.peer}: {self._last} was taken last, "
            f"{len(self._arrived)} more here, {self._under_way} awaited"
        )

    def close(self) -> None:
        wire = self.wire
        wire.watch.wait(
            lambda: not self._under_way, f"rank {wire.rank}: {wire.edge} from rank {wire.peer}: last messages"
        )
        self._posted.put(None)
        self._join()
