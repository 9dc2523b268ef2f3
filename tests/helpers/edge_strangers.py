"""Strangers on the sockets of a recoverable job of four ranks that share a secret: what they try, and what they get."""

import random
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from counterflow.message import MessageKind, Tag, pack_header
from counterflow.recovery.sealed_store import SealedStore
from counterflow.topology import Edge, Stream
from counterflow.transport.handshake import Handshake
from counterflow.transport.rendezvous import LauncherStore
from counterflow.transport.shared_secret import RunKey
from tests.helpers.elastic import children
from tests.helpers.kills import RANKS, RECOVER, fingerprint
from tests.helpers.ports import Address, free_port
from tests.helpers.processes import Fresh, run_rank
from tests.helpers.strangers import LARGEST, reset, send

SECRET = "a secret that the strangers do not have"
EDGES = [Edge(stream, lower) for lower in range(1, RANKS) for stream in (Stream.ACTIVATION, Stream.TARGET)]
WANTED = pack_header(Tag(MessageKind.ACTIVATION, 0), 3)
"""Request of a receiver: the first message, and room for three."""
STARTS_WITHIN = 60.0
"""Seconds until all edges listen, on a busy machine."""


@dataclass(frozen=True)
class Known:
    """Knowledge of a stranger: all but the secret."""

    token: bytes
    """Word of the run, from the launcher's store."""
    heard: dict[Address, bytes]
    """Handshake of a peer that each of the listeners let in."""


Stranger = Callable[[socket.socket, Address, Known, random.Random], None]


def drip(connection: socket.socket, *_: object) -> None:
    """Send a byte from time to time."""
    for _ in range(5):
        send(connection, b"\1")
        time.sleep(0.05)


def reflect(connection: socket.socket, *_: object) -> None:
    """Return the listener's own nonce as a proof."""
    connection.settimeout(5)
    with suppress(OSError):
        connection.sendall(bytes(32))
        connection.sendall(connection.recv(32, socket.MSG_WAITALL))


def sends(message: Callable[[Address, Known, random.Random], bytes]) -> Stranger:
    return lambda connection, address, known, draw: send(connection, message(address, known, draw))


def another(known: Known, address: Address) -> bytes:
    """Handshake that another listener than that of ``address`` let in."""
    return next(words for place, words in known.heard.items() if place != address)


STRANGERS: dict[str, Stranger] = {
    "nothing": lambda *_: None,
    "reset": lambda connection, *_: reset(connection),
    "random bytes": sends(lambda address, known, draw: draw.randbytes(draw.randrange(1, 2**16))),
    "half a nonce": sends(lambda address, known, draw: draw.randbytes(16)),
    "a nonce": sends(lambda address, known, draw: draw.randbytes(32)),
    "half a proof": sends(lambda address, known, draw: draw.randbytes(48)),
    "a guess": sends(lambda address, known, draw: draw.randbytes(64) + WANTED),
    "a request alone": sends(lambda address, known, draw: WANTED),
    "the token and a request": sends(lambda address, known, draw: known.token + WANTED),
    "a handshake again": sends(lambda address, known, draw: known.heard.get(address, bytes(64)) + WANTED),
    "another edge's handshake": sends(lambda address, known, draw: another(known, address) + WANTED),
    "a huge announcement": sends(
        lambda address, known, draw: pack_header(Tag(MessageKind.ACTIVATION, 0), LARGEST) * 1000
    ),
    "zeros": sends(lambda address, known, draw: bytes(2**23)),
    "HTTP": sends(lambda address, known, draw: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "drips": drip,
    "reflects": reflect,
}


class GuardedJob:
    """A recoverable job of `RANKS` ranks with a secret, whose store strangers can read."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self._secret = folder / "secret"
        self._secret.write_text(SECRET)
        self._secret.chmod(0o600)
        port = free_port()
        self._store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        given = [*RECOVER, f"engine.secret_file={self._secret}", "run.dir=run", *overrides]
        self.run = Fresh(RANKS, run_rank, port, given, True)
        self.folder = self.run.folder / "work" / "run"

    def __enter__(self) -> "GuardedJob":
        return self

    def __exit__(self, *_: object) -> None:
        self.run.__exit__()

    def known(self) -> Known:
        """Wait until all edges listen; a peer that has the secret is then heard, once at each."""
        end = time.monotonic() + STARTS_WITHIN
        while True:
            assert time.monotonic() < end, self.run.texts()
            assert len(self.run.running()) == RANKS, self.run.texts()
            with suppress(OSError, RuntimeError):
                token = self._token()
                return Known(token, {place: self._heard(edge, place) for edge, place in self._listeners(token)})
            time.sleep(0.05)

    def _token(self) -> bytes:
        if not self._store.check(["hello/1"]):
            raise OSError("no rank yet")
        welcome = f"welcome/{self._store.get('hello/1').decode()}"
        if not self._store.check([welcome]):
            raise OSError("no answer yet")
        return self._store.get(welcome)

    def _listeners(self, token: bytes) -> list[tuple[str, Address]]:
        """Key and address of every edge."""
        plain = LauncherStore(self._store, 0, f"{token.decode()}/")
        store = SealedStore(plain, RunKey(token, SECRET.encode()))
        found = []
        for edge in EDGES:
            key = f"edge/{edge.stream.value}/{edge.lower}/{edge.replica}/{edge.peer}"
            if not store.has(key):
                raise OSError(f"{edge} does not listen yet")
            host, port = store.get(key).decode().split()
            found.append((key, (host, int(port))))
        return found

    def addresses(self, known: Known) -> list[Address]:
        """Addresses of all edges now: a rank that was replaced has others."""
        return [address for _, address in self._listeners(known.token)]

    def _heard(self, key: str, address: Address) -> bytes:
        """Words of a handshake that the listener accepts, up to what it would read next."""
        with socket.create_connection(address, 5) as connection:
            run_key, mine = RunKey(self._token(), SECRET.encode()), secrets.token_bytes(32)
            handshake = Handshake(run_key, key, f"{address[0]} {address[1]}")
            connection.settimeout(5)
            connection.sendall(mine)
            theirs = connection.recv(32, socket.MSG_WAITALL)
            proof = run_key.proof(handshake._connecting, mine, theirs)
            connection.sendall(proof)
            answer = connection.recv(32, socket.MSG_WAITALL)
            assert run_key.proves(answer, handshake._listening, theirs, mine), "it was not let in"
            return mine + proof

    def trainers(self) -> list[int]:
        """Processes that train, children of their supervisors."""
        return [child for supervisor in self.run.pids for child in children(supervisor)]

    def finish(self, seconds: float) -> str:
        """Fingerprint at the end of all ranks, which must be good, ``seconds`` after the start at most."""
        ends = self.run.wait(seconds)
        assert [ended.status for ended in ends] == [0] * RANKS, self.run.texts()
        return fingerprint(self.folder)


def attempt(name: str, address: Address, known: Known, draw: random.Random, stay: ExitStack) -> bytes | None:
    """Try to get in; stay connected every other time. What came back, or None if the listener was gone."""
    try:
        connection = socket.create_connection(address, 5)
    except OSError:
        return None
    stays = draw.random() < 0.5
    with ExitStack() as leave:
        (stay if stays else leave).enter_context(connection)
        STRANGERS[name](connection, address, known, draw)
        if name == "reset":
            return b""
        answer = b""
        connection.settimeout(0.2)
        with suppress(OSError):
            while piece := connection.recv(4096):
                answer += piece
        return answer


def attempts(
    count: int, addresses: Sequence[Address], known: Known, draw: random.Random, stay: ExitStack
) -> list[tuple[str, bytes]]:
    """Make ``count`` attempts, eight at a time, of all kinds in turn; the kind of each and what came back."""
    kinds = [list(STRANGERS)[i % len(STRANGERS)] for i in range(count)]
    seeds = [draw.randrange(2**32) for _ in kinds]
    places = [addresses[i % len(addresses)] for i in range(count)]
    draw.shuffle(places)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda name, place, seed: attempt(name, place, known, random.Random(seed), stay), kinds, places, seeds
        )
        return [(name, answer) for name, answer in zip(kinds, answers, strict=True) if answer is not None]


def let_in(answers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Those of ``answers`` that are more than a nonce and a refusal."""
    return [(name, answer) for name, answer in answers if answer[32:] not in (b"", bytes(32)[: len(answer) - 32])]
