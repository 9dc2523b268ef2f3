"""Both ends of an edge that outlives the process at its other end (``engine.recovery=rank``), and its replay buffer.

They use plain sockets, because a process group does not outlive a member: gloo does not tell a posted receive that the
sender died, and nothing ends that receive, not even ``abort``. The receiver connects, both prove that they belong to
the run, and the receiver says which message it needs next, and gets all messages from there on. It does so again when
one of the two ranks has been replaced. A replaced rank computes the same bits again, so the two only have to agree on
the position in the stream.
"""

import contextlib
import errno
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

from counterflow.message import HEADER_BYTES, MessageError, MessageKind, Tag, check_header, pack_header, unpack_header
from counterflow.transport.channel import Payload
from counterflow.transport.handshake import (
    HANDSHAKE_SECONDS,
    AuthenticatedListener,
    UnprovenError,
    connect_proven,
    read_exactly,
    wake,
)
from counterflow.transport.keepalive import SILENCE, is_silence, keep_alive
from counterflow.transport.remote import Endpoint
from counterflow.transport.rendezvous import LauncherStore
from counterflow.transport.shared_secret import RunKey

_PAUSE = 0.02
"""Seconds between attempts to reach a neighbour."""


@dataclass(frozen=True)
class ReplayEndpoint(Endpoint):
    """One end of an edge on a socket."""

    store: LauncherStore
    """Store in which the sender leaves the address on which it listens."""
    run_key: RunKey
    """Key that only ranks of this run have, of which both ends give proof."""

    @property
    def key(self) -> str:
        edge = self.edge
        return f"edge/{edge.stream.value}/{edge.lower}/{edge.replica}/{edge.peer}"


def order(tag: Tag) -> tuple[int, bool, int]:
    """Sort key of the tags of one edge, in the order of its messages: a test batch comes after its training batch, and
    sums after slices."""
    return tag.n, tag.kind in (MessageKind.TEST, MessageKind.PREDICTION, MessageKind.SUM), tag.e


class ReplayBuffer:
    """Queue of the messages of one edge, which can be read at any position. Not for several threads at a time.

    Up to ``max_bytes`` bytes are held in memory; beyond that, the oldest messages are in files without a name.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: deque[tuple[Tag, Tensor | tuple[IO[bytes], int, int]]] = deque()
        """The oldest messages as file, position and length. A file is deleted with the last message that is in it."""
        self.first = 0
        """Messages that were dropped: the position of the oldest one that was not, or of the next one."""
        self._newest_dropped: Tag | None = None
        self._in_file = 0
        self.held = 0
        """Bytes in memory."""
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """Messages so far, including those that were dropped."""
        return self.first + len(self._messages)

    def append(self, tag: Tag, buffer: Tensor) -> None:
        """Add a message; ``buffer``, uint8, must not be changed afterwards."""
        self._messages.append((tag, buffer))
        self.held += buffer.numel()
        while self.held > self._max_bytes and self._in_file < len(self._messages) - 1:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="counterflow-replay-")  # noqa: SIM115
        tag, buffer = self._messages[self._in_file]
        assert isinstance(buffer, Tensor)
        position = self._file.seek(0, 2)
        self._file.write(buffer.numpy().data)
        self._messages[self._in_file] = tag, (self._file, position, buffer.numel())
        self._in_file += 1
        self.held -= buffer.numel()

    def message(self, i: int) -> tuple[Tag, Tensor]:
        """Message ``i`` of all so far, which must not be dropped."""
        tag, where = self._messages[i - self.first]
        if isinstance(where, Tensor):
            return tag, where
        file, position, nbytes = where
        file.seek(position)
        return tag, torch.frombuffer(bytearray(file.read(nbytes)), dtype=torch.uint8)

    def reaches(self, tag: Tag) -> bool:
        """True if no message from ``tag`` on was dropped."""
        return self._newest_dropped is None or order(tag) > order(self._newest_dropped)

    def drop(self, tag: Tag, position: int) -> None:
        """Drop all messages that are both before ``tag`` and before ``position``."""
        while self._messages and self.first < position and order(self._messages[0][0]) < order(tag):
            self._newest_dropped, where = self._messages.popleft()
            self.first += 1
            if isinstance(where, Tensor):
                self.held -= where.numel()
            else:
                self._in_file -= 1
        self._file = None  # a new one comes next, or this one would grow forever


class _ReplayingEnd:
    """One end of the edge: it may have a connection, or wait for the next one."""

    def __init__(self, endpoint: ReplayEndpoint) -> None:
        self.endpoint = endpoint
        self._connection: socket.socket | None = None
        self._closed = False
        self._last: Tag | str = "nothing"
        self._unreachable_since: float | None = None

    def _judge(self, error: OSError) -> None:
        """End all waits if ``error`` says that the machine of the peer is gone.

        That of a process that was killed says so at once, and another process takes its place.
        """
        unreachable = isinstance(error, TimeoutError) or error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        if not unreachable:
            self._unreachable_since = None
        elif self._unreachable_since is None:
            self._unreachable_since = time.monotonic()
        since = self._unreachable_since
        if is_silence(error) or (since is not None and time.monotonic() - since > SILENCE):
            peer = f"lost rank {self.endpoint.peer}"
            self.endpoint.watchdog.lose(f"{peer} (no answer for {SILENCE:g} s: its machine is down, or the link to it)")

    def end(self) -> None:
        with self.endpoint.watchdog:
            self._closed = True
        if self._connection is not None:
            _close(self._connection)


class ReplayingSender(_ReplayingEnd):
    """Keeps the messages that it has sent until `drop`, and sends them again to a process that replaces its peer."""

    def __init__(self, endpoint: ReplayEndpoint, host: str, max_bytes: int) -> None:
        """Listen on ``host``; hold ``max_bytes`` bytes in memory, and the rest in a file."""
        super().__init__(endpoint)
        self._replay = ReplayBuffer(max_bytes)
        self._position = 0
        self._wanted: Tag | None = None
        """The first message that the peer needs; it has all before it."""
        self._credits = 0
        self._listener = AuthenticatedListener(host, endpoint.run_key, endpoint.key, self._serve, endpoint.start_thread)
        endpoint.store.set(endpoint.key, self._listener.address)
        endpoint.start_thread(self._send_all)

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Copy and send; returns before the message has left. ``ValueError`` if ``tensors`` do not match the layout."""
        endpoint = self.endpoint
        layout = endpoint.layout(tag, tensors)
        buffer = endpoint.buffers.buffer(layout.nbytes)
        written = endpoint.buffers.write(buffer, layout, pack_header(tag, layout.payload_nbytes), tensors)
        if written is not None:
            written.synchronize()
        endpoint.watchdog.wait(lambda: len(self._replay) - self._position < 2, endpoint.sending(f"room for {tag}"))
        with endpoint.watchdog:
            self._replay.append(tag, buffer)
            self._last = tag

    def drop(self, tag: Tag) -> None:
        """Drop messages before ``tag``: no process that replaces the peer needs them.

        Messages that the peer itself has not been sent stay: it may have restarted from an older checkpoint.
        """
        with self.endpoint.watchdog:
            self._replay.drop(tag, self._position)

    def state(self) -> str:
        left = len(self._replay) - self._position
        return f"{self.endpoint.edge} to rank {self.endpoint.peer}: {self._last} was sent last, {left} to leave"

    def close(self) -> None:
        """Wait until all messages have left this process; they can be sent again until `end`."""
        self.endpoint.watchdog.wait(lambda: self._position == len(self._replay), self.endpoint.sending("last messages"))

    def end(self) -> None:
        self._listener.close()
        super().end()

    def _serve(self, connection: socket.socket) -> None:
        """Read which message the peer needs, and then its credits, until the connection ends."""
        endpoint = self.endpoint
        try:
            wanted, credits = unpack_header(
                read_exactly(connection, HEADER_BYTES, time.monotonic() + HANDSHAKE_SECONDS)
            )
            connection.settimeout(None)
            keep_alive(connection)
            self._unreachable_since = None
            with endpoint.watchdog:
                if not self._replay.reaches(wanted):
                    raise MessageError(f"it needs {wanted}, which is not kept any more")
                before, self._connection = self._connection, connection
                self._position, self._wanted = self._replay.first, wanted
                self._credits = credits
            if before is not None:
                _close(before)
            while given := connection.recv(4096):
                with endpoint.watchdog:
                    if self._connection is connection:
                        self._credits += len(given)
        except MessageError as error:
            endpoint.watchdog.fail(endpoint.error(error))
        except OSError as error:
            self._judge(error)
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        """Stop to send on ``connection``, unless another one has replaced it already."""
        with self.endpoint.watchdog:
            if self._connection is connection:
                self._connection = None

    def _can_send(self) -> bool:
        return self._connection is not None and self._credits > 0 and self._position < len(self._replay)

    def _send_all(self) -> None:
        watchdog = self.endpoint.watchdog
        while watchdog.wait_in_background(lambda: self._closed or self._can_send()) and not self._closed:
            with watchdog:
                connection, i = self._connection, self._position
                if connection is None or i >= len(self._replay):
                    continue
                tag, buffer = self._replay.message(i)
                if self._wanted is not None and order(tag) < order(self._wanted):
                    self._position += 1
                    continue
            try:
                connection.sendall(buffer.numpy().data)
            except OSError as error:
                self._judge(error)
                self._forget(connection)
                continue
            with watchdog:
                # A peer that has all it needs closes at once; one that connected meanwhile starts somewhere else.
                if self._connection in (connection, None) and self._position == i:
                    self._position = i + 1
                    self._credits -= 1


class ReplayingReceiver(_ReplayingEnd):
    """Receives ``depth`` messages ahead, and one more that a block holds.

    ``tags`` is every message that will ever come, in order.
    """

    def __init__(self, endpoint: ReplayEndpoint, depth: int, tags: Iterator[Tag]) -> None:
        super().__init__(endpoint)
        self._depth = depth
        self._tags = tags
        self._expected = next(tags, None)
        self._free: deque[Tensor] = deque(endpoint.buffers.buffer(0) for _ in range(depth + 2))
        self._arrived: deque[tuple[Tag, Tensor, Payload]] = deque()
        self._held: deque[Tensor] = deque()
        endpoint.start_thread(self._run)

    def receive(self, tag: Tag) -> Payload:
        endpoint = self.endpoint
        endpoint.watchdog.wait(lambda: self._arrived, endpoint.receiving(f"waiting for {tag}"))
        with endpoint.watchdog:
            found, buffer, payload = self._arrived.popleft()
            self._held.append(buffer)
            self._last = tag
        if found != tag:
            raise endpoint.error(f"{tag}: {found} is next")
        return payload

    def release(self) -> None:
        with self.endpoint.watchdog:
            self._free.append(self._held.popleft())
            connection = self._connection
        if connection is not None:
            # A lost credit does no harm: the next connection starts with the number of free buffers.
            with contextlib.suppress(OSError):
                connection.send(b"c")  # one credit

    def state(self) -> str:
        here = len(self._arrived)
        return f"{self.endpoint.edge} from rank {self.endpoint.peer}: {self._last} was taken last, {here} more here"

    def close(self) -> None:
        self.endpoint.watchdog.wait(lambda: self._expected is None, self.endpoint.receiving("last messages"))

    def _run(self) -> None:
        endpoint = self.endpoint
        unproven_since: float | None = None
        while self._expected is not None and not self._closed:
            try:
                with self._connect() as connection:
                    unproven_since = None
                    self._take_from(connection)
            except UnprovenError:
                # Perhaps a stranger has the port of a sender that was killed, until that is replaced.
                unproven_since = unproven_since or time.monotonic()
                if time.monotonic() > unproven_since + endpoint.watchdog.timeout / 2:
                    raise endpoint.error("the other side did not prove that it has the same secret") from None
                time.sleep(_PAUSE)
            except OSError as error:
                self._judge(error)
                time.sleep(_PAUSE)
            except ValueError:
                time.sleep(_PAUSE)
            except MessageError as error:
                raise endpoint.error(error) from error
            with endpoint.watchdog:
                self._connection = None

    def _connect(self) -> socket.socket:
        """Connect to the process that sends now. Raises ``OSError`` if there is none."""
        endpoint = self.endpoint
        if not endpoint.store.has(endpoint.key):
            raise OSError("no sender yet")
        connection = connect_proven(endpoint.run_key, endpoint.key, endpoint.store.get(endpoint.key).decode())
        self._unreachable_since = None
        keep_alive(connection)
        with endpoint.watchdog:
            assert self._expected is not None
            credits = self._depth + 1 - len(self._arrived) - len(self._held)
            connection.sendall(pack_header(self._expected, credits))
            self._connection = connection
        return connection

    def _take_from(self, connection: socket.socket) -> None:
        endpoint = self.endpoint
        while self._expected is not None:
            tag, layout = self._expected, endpoint.layouts(self._expected)
            buffer = endpoint.grown(self._free.popleft(), layout.nbytes)
            try:
                _fill(connection, buffer.numpy().data[: layout.nbytes])
            except OSError:
                self._free.append(buffer)
                raise
            check_header(endpoint.buffers.header(buffer), tag, layout.payload_nbytes)
            payload = endpoint.buffers.read(buffer, layout)
            with endpoint.watchdog:
                self._arrived.append((tag, buffer, payload))
                self._expected = next(self._tags, None)


def _fill(connection: socket.socket, view: memoryview) -> None:
    """Read exactly as many bytes. Raises ``OSError`` if the connection ends before."""
    while view:
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("closed")
        view = view[count:]


def _close(connection: socket.socket) -> None:
    """Close ``connection``, and wake a thread that waits on it."""
    wake(connection)
    connection.close()
