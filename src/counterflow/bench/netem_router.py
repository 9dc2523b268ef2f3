"""Router of an emulated network: a program that delays the packets between ranks.

Every ordered pair of ranks has a link of its own. A packet leaves after those before it, takes size / bandwidth, and
arrives a latency later. Queues are first in, first out, except that TCP's acknowledgements overtake: if they waited
behind data in the same direction, a link used both ways would have half of its bandwidth.

Imports the standard library alone, so that it starts at once and takes little memory.
"""

import asyncio
import contextlib
import os
import random
import selectors
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

_MAX_QUEUED = 1 << 28
"""Bytes of one link's queue, far above TCP's windows. Further packets are dropped."""
_AT_ONCE = 16
"""Packets read from one rank before the next rank's turn."""


@dataclass
class _Link:
    """State of the link from one rank to another."""

    free_at: float = 0.0
    """Time of the event loop in seconds when the last queued byte has left."""
    queued: int = 0
    """Bytes in flight."""


class Router:
    """The ranks that have joined, and the packets in flight."""

    def __init__(self, ranks: int, bandwidth: float, latency: float, loss: float) -> None:
        self._ranks, self._bandwidth, self._latency, self._loss = ranks, bandwidth, latency, loss
        self._random = random.Random(0)
        # Epoll would round timeouts up to milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._connections: dict[int, socket.socket] = {}  # by rank, open as long as its process lives
        self._tunnels: dict[int, int] = {}  # descriptors by rank; kept after a process has ended, see run
        self._links = {(a, b): _Link() for a in range(ranks) for b in range(ranks)}

    def run(self, listener: socket.socket, parent: int) -> None:
        """Route packets until descriptor ``parent`` is closed. Ranks join over ``listener``.

        The tunnel of a process that has ended stays open, as a machine outlives its processes: its last packets arrive,
        and packets to it are answered by a reset of the connection.
        """
        self._loop.add_reader(listener, self._accept, listener)
        self._loop.add_reader(parent, self._loop.stop)
        self._loop.run_forever()

    def _accept(self, listener: socket.socket) -> None:
        """Let a rank join: it sends one byte, its number, with its tunnel, and gets one byte once all have joined."""
        connection, _ = listener.accept()
        connection.settimeout(10.0)
        try:
            greeting, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError:
            greeting = b""
        if not greeting:  # the process has ended already
            connection.close()
            return
        rank = greeting[0]
        assert rank < self._ranks, rank
        if rank in self._connections:
            self._leave(rank)
        if rank in self._tunnels:
            self._loop.remove_reader(self._tunnels[rank])
            os.close(self._tunnels[rank])
        self._connections[rank], self._tunnels[rank] = connection, descriptors[0]
        self._loop.add_reader(connection, self._leave, rank)
        self._loop.add_reader(descriptors[0], self._read, rank)
        if len(self._connections) == self._ranks:
            for other in self._connections.values():
                with contextlib.suppress(OSError):  # the process has ended meanwhile
                    other.send(b"!")

    def _leave(self, rank: int) -> None:
        """Close the connection of a process that has ended."""
        connection = self._connections.pop(rank)
        self._loop.remove_reader(connection)
        connection.close()

    def _read(self, rank: int) -> None:
        """Schedule the delivery of the next packets from a rank."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self._tunnels[rank], 65535)
            except OSError:  # no more packets
                return
            destination, size = packet[19] - 1, len(packet)
            if packet[0] >> 4 != 4 or not 0 <= destination < self._ranks:
                continue
            if self._loss and self._random.random() < self._loss:
                continue
            link = self._links[rank, destination]
            if link.queued + size > _MAX_QUEUED:
                continue
            link.queued += size
            now, duration = self._loop.time(), size / self._bandwidth
            link.free_at = max(link.free_at, now) + duration
            leaves = now + duration if _is_pure_ack(packet) else link.free_at
            self._loop.call_at(leaves + self._latency, self._deliver, destination, link, packet)

    def _deliver(self, rank: int, link: _Link, packet: bytes) -> None:
        link.queued -= len(packet)
        if rank in self._tunnels:
            with contextlib.suppress(OSError):  # not accepted, like a lost packet
                os.write(self._tunnels[rank], packet)


def _is_pure_ack(packet: bytes) -> bool:
    """TCP without payload and with no flag but ACK: overtaking puts nothing out of order."""
    return (
        len(packet) <= 80
        and packet[0] == 0x45
        and packet[9] == socket.IPPROTO_TCP
        and packet[33] == 0x10
        and len(packet) == 20 + 4 * (packet[32] >> 4)
    )


def main() -> None:
    """Command line: descriptor of the listener, ranks, bytes/s, seconds, share of lost packets.

    Ends when its standard input is closed.
    """
    descriptor, ranks, bandwidth, latency, loss = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # a link does not wait for a core
    Router(int(ranks), float(bandwidth), float(latency), float(loss)).run(listener, sys.stdin.fileno())
    rmtree(Path(listener.getsockname()).parent, ignore_errors=True)  # the process that made it has ended


if __name__ == "__main__":
    main()
