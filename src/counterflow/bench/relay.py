"""The program that a network of slow links runs: one router, a process of its own, that delays what ranks send.

Every ordered pair of ranks has a link with a clock of its own: a packet leaves when those before it have left, takes
size / bandwidth, and is there a latency later. Queues are first in, first out, but for TCP's acknowledgements, which
overtake: waiting behind what is sent the other way, they would halve the bandwidth of links used both ways.

Imports nothing but the standard library, so that it is there at once, and has the memory of an interpreter alone.
"""

import contextlib
import heapq
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

_GREETING = struct.Struct("=I")
"""What a rank sends with its tunnel: its number. It gets one byte back once all ranks are there."""

_MAX_PACKET = 65535
_MAX_QUEUED = 1 << 28
"""Bytes of one link's queue. TCP's windows keep far below; what comes without a window is dropped beyond it."""
_AT_ONCE = 16
"""Packets taken from one rank before others have their turn."""
_GREETING_SECONDS = 10.0


@dataclass
class _Link:
    """From one rank to another."""

    free: float = 0.0
    """When the last byte of what was sent so far leaves, s on the monotonic clock."""
    queued: int = 0
    """Bytes under way."""


class Relay:
    """The state of the router: who is there, and what is under way."""

    def __init__(self, ranks: int, bandwidth: float, latency: float) -> None:
        self._ranks, self._bandwidth, self._latency = ranks, bandwidth, latency
        self._calls: dict[int, socket.socket] = {}  # rank -> connection, open as long as its process lives
        self._tunnels: dict[int, int] = {}  # rank -> descriptor; keeps the kernel of a rank that has ended, see run
        self._links = {(a, b): _Link() for a in range(ranks) for b in range(ranks)}
        self._due: list[tuple[float, int, int, _Link, bytes]] = []
        self._count = 0

    def run(self, door: socket.socket, life: int) -> None:
        """Routes until descriptor ``life`` has ended. ``door`` is where ranks enter.

        The tunnel of a rank that has ended stays, as a machine outlives a process: what was sent last arrives, and who
        writes to it hears that nobody is there.
        """
        while True:
            calls = {call.fileno(): rank for rank, call in self._calls.items()}
            tunnels = {tunnel: rank for rank, tunnel in self._tunnels.items()}
            watched = [life, door.fileno(), *calls, *tunnels]
            while True:
                wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
                readable, _, _ = select.select(watched, [], [], wait)
                changed = [descriptor for descriptor in readable if descriptor not in tunnels]
                if changed:
                    break
                for tunnel in readable:
                    self._take(tunnels[tunnel], tunnel)
                self._deliver()
            if life in changed:
                return
            for descriptor in changed:  # the dead before the new: a rank may come again
                if descriptor in calls:
                    self._calls.pop(calls[descriptor]).close()
            if door.fileno() in changed:
                self._admit(door)

    def _admit(self, door: socket.socket) -> None:
        call, _ = door.accept()
        call.settimeout(_GREETING_SECONDS)
        try:
            greeting, descriptors, _, _ = socket.recv_fds(call, _GREETING.size, 1)
        except OSError:
            greeting = b""
        if not greeting:  # it has died at the door
            call.close()
            return
        (rank,) = _GREETING.unpack(greeting)
        assert rank < self._ranks, rank
        if rank in self._calls:
            self._calls[rank].close()
        if rank in self._tunnels:
            os.close(self._tunnels[rank])
        self._calls[rank], self._tunnels[rank] = call, descriptors[0]
        if len(self._calls) == self._ranks:
            for other in self._calls.values():
                with contextlib.suppress(OSError):  # it has died meanwhile
                    other.send(b"!")

    def _take(self, rank: int, tunnel: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(tunnel, _MAX_PACKET)
            except OSError:  # no more packets
                return
            if packet[0] >> 4 != 4 or not 0 < packet[19] <= self._ranks:
                continue
            to = packet[19] - 1
            link = self._links[rank, to]
            size = len(packet)
            if link.queued + size > _MAX_QUEUED:
                continue
            link.queued += size
            now, duration = time.monotonic(), size / self._bandwidth
            link.free = max(link.free, now) + duration
            leaves = now + duration if _only_acknowledges(packet) else link.free
            self._count += 1
            heapq.heappush(self._due, (leaves + self._latency, self._count, to, link, packet))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, to, link, packet = heapq.heappop(self._due)
            link.queued -= len(packet)
            if to in self._tunnels:
                with contextlib.suppress(OSError):  # not taken, like a lost packet
                    os.write(self._tunnels[to], packet)


def _only_acknowledges(packet: bytes) -> bool:
    """Whether it is TCP without payload that says nothing else; overtaking, it puts nothing out of order."""
    return (
        len(packet) <= 80
        and packet[0] == 0x45
        and packet[9] == socket.IPPROTO_TCP
        and packet[33] == 0x10
        and len(packet) == 20 + 4 * (packet[32] >> 4)
    )


def main() -> None:
    """Arguments: descriptor of the door, number of ranks, bytes/s, s. Ends with its standard input, or killed."""
    descriptor, ranks, bandwidth, latency = sys.argv[1:]
    door = socket.socket(fileno=int(descriptor))
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # a link takes no core away from anybody, and does not wait for one
    Relay(int(ranks), float(bandwidth), float(latency)).run(door, sys.stdin.fileno())
    rmtree(Path(door.getsockname()).parent, ignore_errors=True)  # whose owner has died


if __name__ == "__main__":
    main()
