"""Keepalive of sockets: the kernel notices that the machine at the other end, or the way to it, is gone.

No packet says that a machine lost power or a link. A wait on its socket would then last until ``engine.timeout``, and
one for the launcher's store for ever. The kernel asks an idle connection every few seconds, and ends it when no answer
came for `SILENCE` seconds. It answers by itself as long as the machine runs. So a process that computes for minutes,
holds Python's global lock or is stopped is not taken for lost.

Gloo and torch's store do not set these options, and give no access to their sockets, so these are found by what a
process has open before and after. Linux only: elsewhere, waits end after ``engine.timeout``.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SILENCE = 18.0
"""Seconds without an answer after which a connection ends."""
_IDLE = 4
"""Seconds without a message before the kernel asks."""
_INTERVAL = 2
"""Seconds between two questions without an answer: a link that loses some packets stays."""

_DESCRIPTORS = Path("/proc/self/fd")


def keep_alive(connection: socket.socket) -> None:
    """End ``connection`` with ``ETIMEDOUT`` after `SILENCE` seconds without an answer of the other machine."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(SILENCE - _IDLE) // _INTERVAL)
    # Messages that were sent and not acknowledged have another clock, of a quarter of an hour.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE))


@contextlib.contextmanager
def keeping_alive() -> Iterator[None]:
    """`keep_alive` for all connections to other machines that the process opens inside, as a process group does."""
    before = set(_sockets())
    yield
    for inode, descriptor in _sockets().items():
        if inode in before:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as opened:
            if opened.family in (socket.AF_INET, socket.AF_INET6) and opened.type == socket.SOCK_STREAM:
                peer, *_ = opened.getpeername()  # raises for one that listens
                if peer != opened.getsockname()[0]:
                    keep_alive(opened)


def is_silence(error: Exception) -> bool:
    """True if ``error``, of gloo or of the store, is that of a connection that the kernel ended so."""
    return os.strerror(errno.ETIMEDOUT) in str(error)


def _sockets() -> dict[str, int]:
    """Descriptors of this process's sockets, by inode; none where the system does not list them."""
    found = {}
    with contextlib.suppress(OSError):
        for path in _DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if (target := os.readlink(path)).startswith("socket:"):
                    found[target] = int(path.name)
    return found
