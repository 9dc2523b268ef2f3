"""Handshake of our own sockets: who is let in, how long others may try, and what they get."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from counterflow.transport import handshake
from counterflow.transport.handshake import MAX_HANDSHAKES, AuthenticatedListener, UnprovenError, connect_proven
from counterflow.transport.shared_secret import RunKey
from tests.helpers.ports import open_files
from tests.helpers.strangers import read_all

KEY = RunKey(b"run", b"a secret of 16 bytes or more")
EDGE = "edge/activation/1"


class Door:
    """A listener that answers every proven connection with what it was sent, in capitals."""

    def __init__(self) -> None:
        self.served = 0
        self.threads: list[threading.Thread] = []
        self.listener = AuthenticatedListener("127.0.0.1", KEY, EDGE, self._serve, self._start)

    def _serve(self, connection: socket.socket) -> None:
        self.served += 1
        connection.settimeout(10)
        with contextlib.suppress(OSError):
            connection.sendall(connection.recv(100).upper())

    def _start(self, work: Callable[[], None]) -> None:
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def knock(self) -> socket.socket:
        """A connection that has said nothing yet."""
        host, port = self.listener.address.split()
        return socket.create_connection((host, int(port)), 10)

    def lets_in(self, key: RunKey = KEY, purpose: str = EDGE) -> bool:
        """True if a peer gets an answer; raises what `connect_proven` does."""
        with connect_proven(key, purpose, self.listener.address) as connection:
            connection.settimeout(10)
            connection.sendall(b"hello")
            return connection.recv(100) == b"HELLO"


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.listener.close()
    for thread in door.threads:
        thread.join(10)
        assert not thread.is_alive(), "a thread outlives its listener"


def test_a_peer_is_let_in(door: Door) -> None:
    assert [door.lets_in() for _ in range(3)] == [True] * 3
    assert door.served == 3


@pytest.mark.parametrize(
    ("key", "purpose"),
    [
        (RunKey(b"run", b"another secret of 16 bytes"), EDGE),
        (RunKey(b"another run", b"a secret of 16 bytes or more"), EDGE),
        (RunKey(b"run"), EDGE),
        (KEY, "edge/activation/2"),
        (KEY, "edge/target/1"),
    ],
)
def test_a_peer_of_another_secret_run_or_edge_is_not(door: Door, key: RunKey, purpose: str) -> None:
    with pytest.raises(UnprovenError):
        door.lets_in(key, purpose)
    assert door.served == 0
    assert door.lets_in()


def test_a_listener_without_the_key_is_found_out() -> None:
    """It answers at random, or returns to the other side what that has sent."""
    for echoes in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as impostor:

            def answer(echoes: bool = echoes, impostor: socket.socket = impostor) -> None:
                with impostor.accept()[0] as connection:
                    for _ in range(2):
                        received = connection.recv(32, socket.MSG_WAITALL)
                        connection.sendall(received if echoes else bytes(32))

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(UnprovenError):
                connect_proven(KEY, EDGE, f"127.0.0.1 {impostor.getsockname()[1]}")
            thread.join()


class Relay:
    """A program between a peer and a listener, which passes all bytes on and keeps those of the peer."""

    def __init__(self, door: Door) -> None:
        self.heard = b""
        self._server = socket.create_server(("127.0.0.1", 0))
        self._door = door
        self.address = f"127.0.0.1 {self._server.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._pass_on, daemon=True)]
        self._threads[0].start()

    def _pass_on(self) -> None:
        with self._server, self._server.accept()[0] as peer, self._door.knock() as listener:
            back = threading.Thread(target=self._copy, args=(listener, peer, False), daemon=True)
            back.start()
            self._copy(peer, listener, True)
            back.join(10)

    def _copy(self, source: socket.socket, sink: socket.socket, keeps: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                self.heard += piece if keeps else b""
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        self._threads[0].join(10)


def test_a_program_that_passes_on_from_its_own_address_is_found_out(door: Door) -> None:
    relay = Relay(door)
    with pytest.raises(UnprovenError):
        connect_proven(KEY, EDGE, relay.address)
    relay.join()
    assert door.served == 0


def test_neither_side_sends_what_it_knows(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is heard by a relay on its way to the listener, and its words are of no use a second time."""
    relay = Relay(door)
    create = socket.create_connection

    def by_relay(address: tuple[str, int], *args: float) -> socket.socket:
        host, port = relay.address.split()
        return create((host, int(port)), *args)

    monkeypatch.setattr(socket, "create_connection", lambda address, *args: by_relay(address, *args))
    monkeypatch.setattr(door, "knock", lambda: create(_address(door), 10))
    assert door.lets_in()
    relay.join()
    heard = relay.heard
    assert len(heard) == 32 + 32 + len(b"hello")
    assert b"secret" not in heard
    assert b"run" not in heard
    monkeypatch.undo()
    for _ in range(3):
        with door.knock() as stranger:
            stranger.sendall(heard)
            answer = read_all(stranger)
        assert len(answer) <= 64
        assert answer[32:] in (b"", bytes(32))
    assert door.served == 1


def _address(door: Door) -> tuple[str, int]:
    host, port = door.listener.address.split()
    return host, int(port)


def test_a_handshake_ends_in_time_however_the_bytes_come(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """One side says nothing, one a byte from time to time, one stops after its nonce."""
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.5)
    start = time.monotonic()
    with door.knock() as silent, door.knock() as slow, door.knock() as half:
        half.sendall(bytes(32))
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 5:
                slow.sendall(b"a")
                time.sleep(0.05)
        assert time.monotonic() - start < 2, "a byte from time to time keeps a handshake going"
        assert read_all(silent) == b""
        assert len(read_all(half)) == 32
    assert door.served == 0
    assert door.lets_in()


def test_a_listener_that_says_nothing_costs_a_peer_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connect_proven(KEY, EDGE, f"127.0.0.1 {silent.getsockname()[1]}")
        assert time.monotonic() - start < 2


def test_many_strangers_cost_few_threads_and_files_and_keep_no_peer_out(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 60.0)  # the limit of their number alone ends them
    before = open_files()
    with ExitStack() as stay:
        for i in range(5 * MAX_HANDSHAKES):
            stay.enter_context(door.knock())
            if i % MAX_HANDSHAKES == 0:
                start = time.monotonic()
                assert door.lets_in()
                assert time.monotonic() - start < 2
        end = time.monotonic() + 5
        while len(alive := [thread for thread in door.threads if thread.is_alive()]) > MAX_HANDSHAKES + 1:
            assert time.monotonic() < end, f"{len(alive)} threads"
            time.sleep(0.01)
        theirs = 5 * MAX_HANDSHAKES
        assert open_files() - before - theirs <= MAX_HANDSHAKES + 2


def test_strangers_of_one_host_end_none_of_another(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 60.0)
    with ExitStack() as stay:
        first = stay.enter_context(door.knock())
        for _ in range(3 * MAX_HANDSHAKES):
            stay.enter_context(socket.create_connection(_address(door), 10, source_address=("127.0.0.2", 0)))
        first.sendall(bytes(32))
        first.settimeout(5)
        assert len(first.recv(32, socket.MSG_WAITALL)) == 32, "its handshake goes on"
        first.settimeout(0.2)
        with pytest.raises(TimeoutError):
            first.recv(1)


def test_it_goes_on_after_connections_that_cannot_be_accepted(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as for want of file descriptors, or because the other side has left again."""
    failures = iter([OSError(24, "Too many open files"), ConnectionAbortedError(103, "aborted")])
    real = door.listener._socket

    class Failing:
        def accept(self) -> tuple[socket.socket, object]:
            for failure in failures:
                raise failure
            return real.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    monkeypatch.setattr(door.listener, "_socket", Failing())
    with door.knock():  # wakes the thread from the real one
        pass
    assert door.lets_in()
    assert next(failures, None) is None
