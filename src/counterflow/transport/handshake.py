"""Handshake of the sockets that Counterflow itself opens: both sides prove that they have the key of the run.

    connecting side                     listening side
    nonce c             ---------->
                        <----------     nonce l
    proof(c, l)         ---------->     checks it
    checks it           <----------     proof(l, c)

A proof is an HMAC over both nonces, the side, the edge and the address of the listener. So none can be used twice, for
the other side, for another edge, or by a program that passes the bytes on from an address of its own. Nothing else is
read before. The connecting side proves itself first: a stranger gets nothing from a listener but random bytes.

The messages that follow are neither encrypted nor authenticated: that is the task of a tunnel (docs/trust.md).
"""

import contextlib
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from counterflow.transport.shared_secret import PROOF_BYTES, RunKey

HANDSHAKE_SECONDS = 5.0
"""Time limit of a whole handshake, however the bytes come."""
MAX_HANDSHAKES = 32
"""Handshakes of one listener that may be under way; one more ends the oldest of the host that has most of them."""
_NONCE_BYTES = 32
_PAUSE = 0.05
"""Seconds after a connection that could not be accepted, such as for want of file descriptors."""


class UnprovenError(OSError):
    """The listening side answered, but did not prove that it has the key."""


class Handshake:
    """Purpose and key of the connections of one listener."""

    def __init__(self, key: RunKey, purpose: str, address: str) -> None:
        """Keep what both sides have to agree on.

        Args:
            key: Key of the run.
            purpose: Name of the edge, or of whatever the connection is for.
            address: Address of the listener, as it was announced to the connecting side.
        """
        self._key = key
        self._purpose = f"{purpose} at {address}"

    def accept(self, connection: socket.socket) -> None:
        """Check that the connecting side has the key, and prove to it that this side has it.

        Raises:
            OSError: It has not, or the handshake takes too long, or the connection ends.
        """
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        theirs, mine = read_exactly(connection, _NONCE_BYTES, deadline), secrets.token_bytes(_NONCE_BYTES)
        _send(connection, mine, deadline)
        if not self._key.proves(read_exactly(connection, PROOF_BYTES, deadline), self._connecting, theirs, mine):
            # A peer with another secret learns at once that it has one; a stranger knows already.
            _send(connection, bytes(PROOF_BYTES), deadline)
            raise ConnectionError("no proof")
        _send(connection, self._key.proof(self._listening, mine, theirs), deadline)

    def offer(self, connection: socket.socket) -> None:
        """Prove to the listening side that this side has the key, and check that the other has it.

        Raises:
            UnprovenError: It has not.
            OSError: The handshake takes too long, or the connection ends.
        """
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        mine = secrets.token_bytes(_NONCE_BYTES)
        _send(connection, mine, deadline)
        theirs = read_exactly(connection, _NONCE_BYTES, deadline)
        _send(connection, self._key.proof(self._connecting, mine, theirs), deadline)
        if not self._key.proves(read_exactly(connection, PROOF_BYTES, deadline), self._listening, theirs, mine):
            raise UnprovenError("no proof")

    @property
    def _connecting(self) -> str:
        return f"connecting to {self._purpose}"

    @property
    def _listening(self) -> str:
        return f"listening for {self._purpose}"


def connect_proven(key: RunKey, purpose: str, address: str) -> socket.socket:
    """Connect to an `AuthenticatedListener`; the connection, without a time limit.

    Args:
        key: Key of the run.
        purpose: That of the listener.
        address: Host and port, with a space between them, as `AuthenticatedListener.address`.

    Raises:
        UnprovenError: The other side answered, but has another key.
        OSError: There is no such listener, or it does not answer in time.
        ValueError: ``address`` is none.
    """
    host, port = address.split()
    connection = socket.create_connection((host, int(port)), HANDSHAKE_SECONDS)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Handshake(key, purpose, address).offer(connection)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


class AuthenticatedListener:
    """Listening socket whose connections are served once the other side has proven itself.

    Strangers cost a thread each, for `HANDSHAKE_SECONDS` at most, and never more than `MAX_HANDSHAKES` at a time.
    """

    def __init__(
        self,
        host: str,
        key: RunKey,
        purpose: str,
        serve: Callable[[socket.socket], None],
        start_thread: Callable[[Callable[[], None]], object],
    ) -> None:
        """Listen on ``host``, on a free port.

        Args:
            host: Address of this machine.
            key: Key of the run.
            purpose: Name of what connections are for.
            serve: Called with each proven connection, on a thread of its own; the connection is closed afterwards.
            start_thread: Runs a function on a thread.
        """
        self._socket = socket.create_server((host, 0))
        self.address = f"{host} {self._socket.getsockname()[1]}"
        self._handshake = Handshake(key, purpose, self.address)
        self._serve = serve
        self._start_thread = start_thread
        self._lock = threading.Lock()
        self._unproven: dict[socket.socket, str] = {}
        """Connections whose handshake is under way, with the host of each, the oldest first."""
        self._closed = False
        start_thread(self._accept)

    def close(self) -> None:
        self._closed = True
        with self._lock:
            unproven = list(self._unproven)
        for connection in (self._socket, *unproven):
            wake(connection)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, (host, *_) = self._socket.accept()
            except OSError:
                # The listener was closed, or the other side has left already, or there are too many open files.
                if not self._closed:
                    time.sleep(_PAUSE)
                continue
            with self._lock:
                self._unproven[connection] = host
                surplus = self._longest_waiting() if len(self._unproven) > MAX_HANDSHAKES else None
            if surplus is not None:
                self._forget(surplus)
                wake(surplus)
            self._start_thread(lambda connection=connection: self._check(connection))  # type: ignore[misc]

    def _longest_waiting(self) -> socket.socket:
        """The oldest connection of the host that has most: a stranger's that says nothing, rather than that of a peer,
        which needs two round trips and may be on another host."""
        ((busiest, _),) = Counter(self._unproven.values()).most_common(1)
        return next(connection for connection, host in self._unproven.items() if host == busiest)

    def _check(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._handshake.accept(connection)
            except OSError:
                return
            finally:
                self._forget(connection)
            self._serve(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._unproven.pop(connection, None)


def read_exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Read ``count`` bytes until ``deadline``, a time of the monotonic clock.

    Raises:
        OSError: The connection ends before, or the time is over.
    """
    found = bytearray()
    while len(found) < count:
        connection.settimeout(_left(deadline))
        piece = connection.recv(count - len(found))
        if not piece:
            raise ConnectionError("closed")
        found += piece
    return bytes(found)


def _send(connection: socket.socket, content: bytes, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    connection.sendall(content)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the handshake takes too long")
    return left


def wake(connection: socket.socket) -> None:
    """End the connection, so that a thread which waits on it goes on."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
