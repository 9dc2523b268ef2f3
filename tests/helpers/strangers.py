"""Strangers that connect to the ports of a running job of two ranks, and send what they like."""

import json
import random
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.helpers.ports import Address, free_port, listening
from tests.helpers.processes import Fresh, run_rank

JOB = [
    "train.steps=300",
    "blocks=2",
    "model.width=64",
    "engine.threads=1",
    "engine.timeout=20",
    "run.display=false",
    "run.dir=run",
]
ENDS_WITHIN = 90.0
"""Seconds from the start: those of the run, which a busy machine makes many, and the 20 of its timeout."""


class HostileJob:
    """A job of two ranks, started by hand."""

    def __init__(self, *overrides: str) -> None:
        self.run = Fresh(2, run_rank, free_port(), [*JOB, *overrides])
        self._folder = self.run.folder / "work" / "run"

    def __enter__(self) -> "HostileJob":
        return self

    def __exit__(self, *_: object) -> None:
        self.run.__exit__()

    @property
    def trains(self) -> bool:
        """True once the first batches have been reported."""
        metrics = self._folder / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_size > 0

    def ports(self) -> set[Address]:
        """All addresses on which a rank listens."""
        return {address for pid in self.run.pids for address in listening(pid)}

    def fingerprint(self) -> str | None:
        """Wait for the end. None if all ranks ended cleanly without finishing; anything else fails the test."""
        ends = self.run.wait(ENDS_WITHIN)
        if [ended.status for ended in ends] == [0, 0]:
            fingerprint: str = json.loads((self._folder / "summary.json").read_text())["fingerprint"]
            return fingerprint
        for rank, ended in enumerate(ends):
            lines = ended.stderr.splitlines()
            context = f"rank {rank}: status {ended.status}: {lines}"
            assert ended.status > 0, context
            assert not [line for line in lines if line.startswith("Traceback")], context
            assert len([line for line in lines if line.startswith("error: ")]) == 1, context
        return None


def undisturbed_fingerprint() -> str:
    """Fingerprint of the job that no stranger visits."""
    with HostileJob() as job:
        fingerprint = job.fingerprint()
    assert fingerprint is not None
    return fingerprint


STORE_GREETING = b"\0" + struct.pack("<I", 0x3C85F7CE)
"""First bytes that torch's store expects: the request to validate, and its magic number."""


def send(connection: socket.socket, message: bytes) -> None:
    """Send as much of ``message`` as the other side takes at once."""
    connection.settimeout(0.1)
    try:
        connection.sendall(message)
    except OSError:
        return


def read_all(connection: socket.socket) -> bytes:
    """Everything that the other side sends until it ends the connection; fails if that takes 20 s."""
    received = b""
    connection.settimeout(20)
    try:
        while piece := connection.recv(4096):
            received += piece
    except ConnectionError:
        pass
    return received


def reset(connection: socket.socket) -> None:
    """Close the connection with a reset, as a machine that has restarted."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


LARGEST = 2**63 - 1
MESSAGES = {
    "one byte": b"\1",
    "random": random.Random(1).randbytes(2**16),
    "a length": struct.pack("<Q", LARGEST) * 8,
    "a length, big endian": struct.pack(">Q", LARGEST) * 8,
    "a key's length": STORE_GREETING + b"\1" + struct.pack("<Q", LARGEST) + bytes(2**16),
    "a value's length": STORE_GREETING + b"\1" + struct.pack("<QsQ", 1, b"k", LARGEST) + bytes(2**16),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(2**23),
}
STRANGERS: dict[str, Callable[[socket.socket], None]] = {
    "nothing": lambda connection: None,
    "reset": reset,
    **{name: lambda connection, message=message: send(connection, message) for name, message in MESSAGES.items()},
}


def visit(address: Address, stranger: Callable[[socket.socket], None], stay: ExitStack | None) -> None:
    """Connect and do what ``stranger`` does; close at once, or stay half-open as long as ``stay``."""
    try:
        connection = socket.create_connection(address, 1.0)
    except OSError:
        return  # the listening process has ended
    with ExitStack() as leave:
        (stay or leave).enter_context(connection)
        stranger(connection)


def visit_training(job: HostileJob, names: list[str], stay: ExitStack | None) -> None:
    """Every port, once all of them are open and batches go through."""
    while not job.trains:
        assert job.run.running(), [job.run.texts()]
        time.sleep(0.01)
    ports = job.ports()
    assert len(ports) == 7, ports  # the store, and for each rank the group of all ranks and two edges
    with ThreadPoolExecutor(8) as pool:
        for name in names:
            list(pool.map(lambda address: visit(address, STRANGERS[name], stay), ports))  # noqa: B023  # all are done


def visit_rendezvous(job: HostileJob, names: list[str], stay: ExitStack | None) -> None:
    """Every port as soon as it is open."""
    seen: set[Address] = set()
    with ThreadPoolExecutor(8) as pool:
        while job.run.running() and not job.trains:
            new = job.ports() - seen
            for name in names:
                list(pool.map(lambda address: visit(address, STRANGERS[name], stay), new))  # noqa: B023
            seen |= new
    assert seen


WHEN = {"rendezvous": visit_rendezvous, "training": visit_training}


def allowed(when: str, undisturbed: str) -> tuple[str | None, ...]:
    """The fingerprints of a run that was visited; None is a clean end."""
    return (undisturbed, None) if when == "rendezvous" else (undisturbed,)
