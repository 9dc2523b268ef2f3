"""Ports of this machine, read from the kernel's tables."""

import ipaddress
import os
import random
import socket
import sys
from contextlib import suppress
from pathlib import Path

Address = tuple[str, int]


def free_port() -> int:
    """A port of the loopback interface on which nothing listens.

    Not one of those that the system hands out by itself: a store of another test could get it meanwhile, and what this
    test sends there.
    """
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port in 100 tries")


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


def open_files(pid: int | str = "self") -> int:
    """Number of files that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _address(text: str) -> Address:
    """Parse ``0100007F:1F90``: 32-bit words in the byte order of this machine."""
    host, port = text.split(":")
    words = [int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8)]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)
