"""Options of sockets by which the kernel notices that the other machine is gone."""

import errno
import os
import socket

import pytest

from counterflow.transport.keepalive import SILENCE, is_silence, keep_alive, keeping_alive

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")


def pair(source: str = "127.0.0.2") -> tuple[socket.socket, socket.socket, socket.socket]:
    """A socket that listens on 127.0.0.1, and both ends of a connection from ``source``."""
    listener = socket.create_server(("127.0.0.1", 0))
    connecting = socket.create_connection(listener.getsockname(), source_address=(source, 0))
    return listener, connecting, listener.accept()[0]


def options(connection: socket.socket) -> tuple[int, float]:
    """1 if the kernel asks, and the milliseconds without an answer after which the connection ends."""
    asks = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return asks, connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_a_connection_ends_after_the_same_silence_whether_it_is_idle_or_not() -> None:
    for connection in pair()[1:]:
        keep_alive(connection)
        assert options(connection) == (1, 1000 * SILENCE)
        idle, interval, count = (
            connection.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count == SILENCE


def test_only_connections_to_other_machines_that_are_opened_inside_get_the_options() -> None:
    before = pair()
    with keeping_alive():
        inside, own = pair(), pair("127.0.0.1")
        unix = socket.socketpair()
    after = pair()
    assert [options(connection)[0] for connection in (*before, *after, *own, inside[0])] == [0] * 10
    assert [options(connection) for connection in inside[1:]] == [(1, 1000 * SILENCE)] * 2
    assert not any(end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for end in unix)


def test_no_descriptor_is_left_behind() -> None:
    held = pair()
    count = len(os.listdir("/proc/self/fd"))
    with keeping_alive():
        more = pair()
    assert len(os.listdir("/proc/self/fd")) == count + len(more)
    assert all(end.fileno() >= 0 for end in (*held, *more))


def test_only_the_kernels_own_end_of_a_connection_is_silence() -> None:
    assert is_silence(RuntimeError(f"Read error [10.0.0.2]:1: {os.strerror(errno.ETIMEDOUT)}"))
    assert not is_silence(RuntimeError(os.strerror(errno.ECONNRESET)))
    assert not is_silence(TimeoutError("timed out"))  # of a limit that the program itself set
