"""The two ends of an edge that outlives the process at its other end (``engine.recovery=rank``).

On plain sockets, because a process group does not outlive a member: gloo tells a receive that is posted nothing of a
sender's death, and neither its `abort` nor anything else ends that receive. Whoever receives connects, says which
message comes next, and is sent all from there on; when it, or its neighbour, has been replaced, it does so again.
What the replaced one computes anew are the same bits, so nothing but the place in the stream has to be agreed on.
"""

import contextlib
import hmac
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.distributed_c10d import Store

from counterflow.message import HEADER_BYTES, MessageError, Tag, check_header, pack_header, unpack_header
from counterflow.recovery.replay_buffer import ReplayBuffer, order
from counterflow.transport.channel import ChannelError, Payload
from counterflow.transport.endpoint import Endpoint

_PAUSE = 0.02
"""Seconds between attempts to reach a neighbour."""

_SPEAKS_WITHIN = 5.0
"""Seconds that a stranger has to prove to be none."""

_CREDIT = b"c"


@dataclass(frozen=True)
class Link(Endpoint):
    """What both ends of a durable edge share."""

    store: Store
    """Where the sender says at which address it listens."""
    token: bytes
    """What only ranks of this run know."""

    @property
    def key(self) -> str:
        return f"edge/{self.edge.stream.value}/{self.edge.lower}"

    def fail(self, why: str) -> None:
        self.watch.fail(ChannelError(f"rank {self.rank}: {self.edge} with rank {self.peer}: {why}"))


class ReplayingSender:
    """Keeps what it has sent until `forget`, and sends it again to whoever comes in its neighbour's place."""

    def __init__(self, link: Link, host: str, most: int) -> None:
        """Listens on ``host``; holds ``most`` bytes in memory, and what is more in a file."""
        self.link = link
        self._replay = ReplayBuffer(most)
        self._connection: socket.socket | None = None
        self._position = 0
        self._wanted: Tag | None = None
        """The neighbour has all before it."""
        self._credits = 0
        self._closed = False
        self._last: Tag | str = "nothing"
        self._listener = socket.create_server((host, 0))
        link.store.set(link.key, f"{host} {self._listener.getsockname()[1]}")
        for work in (self._accept, self._run):
            threading.Thread(target=work, name=str(link.edge), daemon=True).start()

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Copy and send; returns before the message has left. Raises ``ValueError`` for tensors not agreed on."""
        link = self.link
        layout = link.layout(tag, tensors)
        buffer = link.medium.buffer(layout.nbytes)
        written = link.medium.write(buffer, layout, pack_header(tag, layout.payload_nbytes), tensors)
        if written is not None:
            written.synchronize()
        what = link.sending(f"room for {tag}")
        link.watch.wait(lambda: len(self._replay) - self._position < 2, what)
        with link.watch:
            self._replay.append(tag, buffer)
            self._last = tag

    def forget(self, tag: Tag) -> None:
        """Nobody who takes the neighbour's place will ask for a message before ``tag`` any more.

        What the neighbour itself has not been sent stays: it may be one that began from the checkpoint before.
        """
        with self.link.watch:
            self._replay.forget(tag, self._position)

    def state(self) -> str:
        left = len(self._replay) - self._position
        return f"{self.link.edge} to rank {self.link.peer}: {self._last} was sent last, {left} to leave"

    def close(self) -> None:
        """Return when everything has left this process; it can be asked for again until `end`."""
        link = self.link
        what = link.sending("last messages")
        link.watch.wait(lambda: self._position == len(self._replay), what)

    def end(self) -> None:
        with self.link.watch:
            self._closed = True
        _close(self._listener)
        if self._connection is not None:
            _close(self._connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the end
                return
            threading.Thread(target=self._serve, args=(connection,), name=str(self.link.edge), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Hear what the neighbour wants, and then every credit it gives, until it is gone."""
        link = self.link
        try:
            connection.settimeout(_SPEAKS_WITHIN)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = bytearray(len(link.token) + HEADER_BYTES)
            _fill(connection, memoryview(hello))
            if not hmac.compare_digest(bytes(hello[: len(link.token)]), link.token):
                connection.close()
                return
            wanted, credits = unpack_header(bytes(hello[len(link.token) :]))
            connection.settimeout(None)
            with link.watch:
                if not self._replay.reaches(wanted):
                    raise MessageError(f"it needs {wanted}, which is not kept any more")
                before, self._connection = self._connection, connection
                self._position, self._wanted = self._replay.first, wanted
                self._credits = credits
            if before is not None:
                _close(before)
            while given := connection.recv(4096):
                with link.watch:
                    if self._connection is connection:
                        self._credits += len(given)
        except MessageError as error:
            link.fail(str(error))
        except OSError:
            pass
        with link.watch:
            if self._connection is connection:
                self._connection = None
        connection.close()

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # a thread must never die silently: whoever waits for it would hang
            self.link.fail(repr(error))

    def _send_all(self) -> None:
        link = self.link

        def ready() -> bool:
            return self._closed or (
                self._connection is not None and self._credits > 0 and self._position < len(self._replay)
            )

        while link.watch.rest(ready) and not self._closed:
            with link.watch:
                connection, i = self._connection, self._position
                if connection is None or i >= len(self._replay):
                    continue
                tag, buffer = self._replay.message(i)
                if self._wanted is not None and order(tag) < order(self._wanted):
                    self._position += 1
                    continue
            try:
                connection.sendall(buffer.numpy().data)
            except OSError:
                with link.watch:
                    if self._connection is connection:
                        self._connection = None
                continue
            with link.watch:
                # A neighbour that has all it needs closes at once; one that came meanwhile begins somewhere else.
                if self._connection in (connection, None) and self._position == i:
                    self._position = i + 1
                    self._credits -= 1


class ReplayingReceiver:
    """``depth`` messages ahead, and one more in the block's hands; ``tags`` is everything that will come, in order."""

    def __init__(self, link: Link, depth: int, tags: Iterator[Tag]) -> None:
        self.link = link
        self._depth = depth
        self._tags = tags
        self._expected = next(tags, None)
        self._free: deque[Tensor] = deque(link.medium.buffer(0) for _ in range(depth + 2))
        self._arrived: deque[tuple[Tag, Tensor, Payload]] = deque()
        self._held: deque[Tensor] = deque()
        self._connection: socket.socket | None = None
        self._closed = False
        self._last: Tag | str = "nothing"
        threading.Thread(target=self._run, name=str(link.edge), daemon=True).start()

    def receive(self, tag: Tag) -> Payload:
        link = self.link
        what = link.receiving(f"waiting for {tag}")
        link.watch.wait(lambda: self._arrived, what)
        with link.watch:
            found, buffer, payload = self._arrived.popleft()
            self._held.append(buffer)
            self._last = tag
        if found != tag:
            raise link.error(tag, f"{found} is next")
        return payload

    def release(self) -> None:
        with self.link.watch:
            self._free.append(self._held.popleft())
            connection = self._connection
        if connection is not None:
            try:
                connection.send(_CREDIT)
            except OSError:  # whoever comes next is told how many are held
                return

    def state(self) -> str:
        here = len(self._arrived)
        return f"{self.link.edge} from rank {self.link.peer}: {self._last} was taken last, {here} more here"

    def close(self) -> None:
        link = self.link
        what = link.receiving("last messages")
        link.watch.wait(lambda: self._expected is None, what)

    def end(self) -> None:
        with self.link.watch:
            self._closed = True
        if self._connection is not None:
            _close(self._connection)

    def _run(self) -> None:
        link = self.link
        while self._expected is not None and not self._closed:
            try:
                with self._connect() as connection:
                    self._take_from(connection)
            except (OSError, ValueError):
                time.sleep(_PAUSE)
            except Exception as error:  # a thread must never die silently: whoever waits for it would hang
                link.fail(str(error) if isinstance(error, MessageError) else repr(error))
                return
            with link.watch:
                self._connection = None

    def _connect(self) -> socket.socket:
        """To whoever sends now. Raises ``OSError`` if nobody does."""
        link = self.link
        if not link.store.check([link.key]):
            raise OSError("nobody has come yet")
        host, port = link.store.get(link.key).decode().split()
        connection = socket.create_connection((host, int(port)), _SPEAKS_WITHIN)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with link.watch:
            assert self._expected is not None
            credits = self._depth + 1 - len(self._arrived) - len(self._held)
            connection.sendall(link.token + pack_header(self._expected, credits))
            self._connection = connection
        return connection

    def _take_from(self, connection: socket.socket) -> None:
        link = self.link
        while self._expected is not None:
            tag, layout = self._expected, link.layouts(self._expected)
            buffer = self._free.popleft()
            if buffer.numel() < layout.nbytes:
                buffer = link.medium.buffer(layout.nbytes)
            try:
                _fill(connection, buffer.numpy().data[: layout.nbytes])
            except OSError:
                self._free.append(buffer)
                raise
            check_header(link.medium.header(buffer), tag, layout.payload_nbytes)
            payload = link.medium.read(buffer, layout)
            with link.watch:
                self._arrived.append((tag, buffer, payload))
                self._expected = next(self._tags, None)


def _fill(connection: socket.socket, view: memoryview) -> None:
    """Read exactly as many bytes. Raises ``OSError`` at the end of the connection."""
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("closed")
        view = view[count:]


def _close(connection: socket.socket) -> None:
    """So that a thread that waits in it notices."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
