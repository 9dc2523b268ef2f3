"""Strangers on the ports of a running job: it goes on, or ends cleanly, whatever they send and when.

A stranger reaches every port and knows nothing else. None changes a bit of a run that trains. While ranks meet, a
stranger takes a rank's place if its first bytes are gloo's number of a connection that is still to come; this ends the
run.
"""

import ipaddress
import json
import multiprocessing
import os
import random
import signal
import socket
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.cli.launch import main
from counterflow.message import HEADER_BYTES, MessageError, MessageKind, Tag, check_header, pack_header
from counterflow.topology import Edge, Stream
from counterflow.transport import ChannelError, MessageLayout, RemoteReceiver, TensorSpec
from counterflow.transport.buffers import CpuGloo
from counterflow.transport.remote import P2PEndpoint
from counterflow.transport.watchdog import Watchdog
from tests.helpers.processes import CONF

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

_context = multiprocessing.get_context("forkserver")

Address = tuple[str, int]


# -- the kernel's tables


def listening(pid: int) -> set[Address]:
    """Address and port of every TCP socket on which a process listens; none if it has ended."""
    inodes = set()
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                inodes.add(os.readlink(path))
        tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:
        return set()
    rows = [line.split() for table in tables for line in table]
    return {_address(row[1]) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def _address(text: str) -> Address:
    """Parse ``0100007F:1F90``: 32-bit words in the byte order of this machine."""
    host, port = text.split(":")
    words = [int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8)]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# -- a job of two ranks, started by hand


def as_rank(rank: int, port: int, folder: str, overrides: list[str]) -> None:
    os.chdir(folder)
    for descriptor, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{stream}{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = ["train.py", *JOB, *overrides]
    main(CONF)
    os._exit(0)


@dataclass
class Job:
    overrides: list[str] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="counterflow-hostile-")))
    processes: list[Any] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "Job":
        port = free_port()
        for rank in range(2):
            args = (rank, port, str(self.folder), self.overrides)
            self.processes.append(_context.Process(target=as_rank, args=args))
            self.processes[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    @property
    def runs(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def trains(self) -> bool:
        """True once the first batches have been reported."""
        metrics = self.folder / "run" / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_size > 0

    def ports(self) -> set[Address]:
        return {address for process in self.processes for address in listening(process.pid)}

    def stderr(self, rank: int) -> str:
        return (self.folder / f"err{rank}").read_text(errors="replace")

    def fingerprint(self) -> str | None:
        """Wait for the end. None if all ranks ended cleanly without finishing; anything else fails the test."""
        while self.runs:
            assert time.monotonic() - self.started < ENDS_WITHIN, f"still runs: {self}"
            time.sleep(0.05)
        statuses = [process.exitcode for process in self.processes]
        if statuses == [0, 0]:
            fingerprint: str = json.loads((self.folder / "run" / "summary.json").read_text())["fingerprint"]
            return fingerprint
        for rank, status in enumerate(statuses):
            lines = self.stderr(rank).splitlines()
            context = f"{statuses}: rank {rank}: {lines}"
            assert status > 0, context
            assert not [line for line in lines if line.startswith("Traceback")], context
            assert len([line for line in lines if line.startswith("error: ")]) == 1, context
        return None


@pytest.fixture(scope="module")
def undisturbed() -> str:
    with Job() as job:
        fingerprint = job.fingerprint()
    assert fingerprint is not None
    return fingerprint


# -- strangers

STORE_GREETING = b"\0" + struct.pack("<I", 0x3C85F7CE)
"""First bytes that torch's store expects: the request to validate, and its magic number."""


def send(connection: socket.socket, message: bytes) -> None:
    """Send as much of ``message`` as the other side takes at once."""
    connection.settimeout(0.1)
    try:
        connection.sendall(message)
    except OSError:
        return


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


def visit_training(job: Job, names: list[str], stay: ExitStack | None) -> None:
    """Every port, once all of them are open and batches go through."""
    while not job.trains:
        assert job.runs, [job.stderr(rank) for rank in range(2)]
        time.sleep(0.01)
    ports = job.ports()
    assert len(ports) == 7, ports  # the store, and for each rank the group of all ranks and two edges
    with ThreadPoolExecutor(8) as pool:
        for name in names:
            list(pool.map(lambda address: visit(address, STRANGERS[name], stay), ports))  # noqa: B023  # all are done


def visit_rendezvous(job: Job, names: list[str], stay: ExitStack | None) -> None:
    """Every port as soon as it is open."""
    seen: set[Address] = set()
    with ThreadPoolExecutor(8) as pool:
        while job.runs and not job.trains:
            new = job.ports() - seen
            for name in names:
                list(pool.map(lambda address: visit(address, STRANGERS[name], stay), new))  # noqa: B023
            seen |= new
    assert seen


WHEN = {"rendezvous": visit_rendezvous, "training": visit_training}


def allowed(when: str, undisturbed: str) -> tuple[str | None, ...]:
    """The fingerprints of a run that was visited; None is a clean end."""
    return (undisturbed, None) if when == "rendezvous" else (undisturbed,)


@pytest.mark.parametrize("when", [pytest.param("rendezvous", marks=pytest.mark.slow), "training"])
def test_strangers_change_nothing(when: str, undisturbed: str) -> None:
    """All of them, one after the other; those of a run that trains stay."""
    with ExitStack() as stay, Job() as job:
        WHEN[when](job, list(STRANGERS), None if when == "rendezvous" else stay)
        assert job.fingerprint() in allowed(when, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stays", [False, True], ids=["goes", "stays"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", STRANGERS)
def test_each_stranger_changes_nothing(name: str, when: str, stays: bool, undisturbed: str) -> None:
    with ExitStack() as stay, Job() as job:
        WHEN[when](job, [name], stay if stays else None)
        assert job.fingerprint() in allowed(when, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stranger_in_a_ranks_place_ends_the_run(victim: int, undisturbed: str) -> None:
    """Gloo identifies a connection by a small number that comes first. A stranger that sends all numbers before the
    other rank is taken for it; the messages that this rank then waits for never come.
    """
    with ExitStack() as stay, Job(["engine.timeout=5"]) as job:
        other = job.processes[1 - victim]
        while len(listening(job.processes[victim].pid)) < (2 if victim == 0 else 1):
            assert job.runs
        os.kill(other.pid, signal.SIGSTOP)
        for address in listening(job.processes[victim].pid):
            for number in range(32):
                visit(address, lambda connection: send(connection, struct.pack("<Q", number)), stay)  # noqa: B023
        os.kill(other.pid, signal.SIGCONT)
        assert job.fingerprint() in (undisturbed, None)  # the first where the other rank had been there already


# -- our own messages

TAG = Tag(MessageKind.ACTIVATION, 0)
LAYOUT = MessageLayout((TensorSpec((3,)),))


@pytest.mark.parametrize("announced", [LAYOUT.payload_nbytes + 1, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_header_that_announces_too_much_costs_no_memory(announced: int) -> None:
    header = pack_header(TAG, announced)
    tracemalloc.start()
    with pytest.raises(MessageError, match=f"announces {announced} bytes, {LAYOUT.payload_nbytes} were agreed"):
        check_header(header, TAG, LAYOUT.payload_nbytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**16


class Recorded(CpuGloo):
    """Buffers that record their sizes, and whose messages complete at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def buffer(self, nbytes: int) -> Tensor:
        self.asked.append(nbytes)
        return super().buffer(nbytes)

    def complete(self, work: object, timeout: float) -> None:
        """Do not wait."""


def test_a_channel_allocates_what_was_agreed_and_nothing_that_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    def forged(buffer: Tensor, *_: object, **__: object) -> object:
        header = pack_header(TAG, LARGEST)
        buffer[:HEADER_BYTES] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        return object()

    monkeypatch.setattr(dist, "irecv", forged)
    buffers, edge = Recorded(), Edge(Stream.ACTIVATION, 1)
    endpoint = P2PEndpoint(edge, 1, 0, lambda tag: LAYOUT, buffers, Watchdog(5.0), cast(dist.ProcessGroup, None))
    receiver = RemoteReceiver(endpoint, 1, iter([TAG]))
    with pytest.raises(ChannelError, match=f"announces {LARGEST} bytes, {LAYOUT.payload_nbytes} were agreed"):
        receiver.receive(TAG)
    assert set(buffers.asked) == {0, LAYOUT.nbytes}
