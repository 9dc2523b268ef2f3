"""Check of the sockets on which a rank, its store and torchrun's agent listen: does more than the chosen interface
reach them? Read from the kernel's tables, on Linux alone.
"""

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from counterflow.doctor.check import Check, Status
from counterflow.rank_info import RankInfo

_LISTENS = "0A"
"""State of a listening socket in the kernel's tables."""
_RANK, _AGENT, _STORE = "gloo of this rank", "torchrun's agent", "the launcher's store"


@dataclass(frozen=True, order=True)
class Listener:
    """One listening TCP socket."""

    owner: str
    address: str
    port: int

    def __str__(self) -> str:
        where = "all interfaces" if ip_address(self.address).is_unspecified else self.address
        return f"{self.owner} on {where}, port {self.port}"


def check_node_listeners(rank_info: RankInfo, chosen: str | None, available: Mapping[str, str]) -> Check:
    """Check the listening sockets of this rank, of torchrun's agent if there is one, and of a store on this node.

    Args:
        rank_info: This rank.
        chosen: Address on which gloo listens.
        available: IPv4 addresses of this node's interfaces, by name.
    """
    name = next((name for name, address in available.items() if address == chosen), None)
    allowed = [] if name is None else list(interface_addresses(name))
    return check_listeners(node_listeners(rank_info, available.values()), [chosen, *allowed], name)


def check_listeners(listeners: Collection[Listener], allowed: Collection[str | None], interface: str | None) -> Check:
    """Check that all sockets listen on the loopback interface, or on addresses that are ``allowed``.

    Args:
        listeners: Sockets of this node's part of the job.
        allowed: Addresses of the interface on which gloo listens.
        interface: Its name, if it is known.
    """
    beyond = sorted(
        listener
        for listener in listeners
        if listener.address not in allowed and not ip_address(listener.address).is_loopback
    )
    where = ", ".join(sorted({listener.address for listener in listeners}))
    ports = ", ".join(str(port) for port in sorted({listener.port for listener in beyond}))
    advice = (
        f"let only {interface or 'the interface between the nodes'} reach port {ports}, by a firewall, a network "
        "namespace or a tunnel: docs/trust.md has the commands"
    )
    return Check.judge(
        "listeners",
        "; ".join(map(str, beyond))
        or (f"{len(listeners)} sockets, on {where} alone" if listeners else "no socket was found"),
        (len(beyond) > 0, Status.WARN, advice),
    )


def node_listeners(rank_info: RankInfo, addresses: Collection[str]) -> set[Listener]:
    """Listening sockets of this process, of torchrun's agent, and of a store at one of ``addresses``.

    No name is resolved, which may take seconds: a store of another program, at another name of this node, is not found.
    """
    table = listening_sockets()
    found = {Listener(_RANK, *table[inode]) for inode in socket_inodes(os.getpid()) & table.keys()}
    if rank_info.run_id is not None:
        found |= {Listener(_AGENT, *table[inode]) for inode in socket_inodes(os.getppid()) & table.keys()}
    if rank_info.master is None:
        return found
    host, port = rank_info.master
    here = {listener for listener in found if listener.port == port}
    stores = {Listener(_STORE, listener.address, port) for listener in here}
    if host in (rank_info.host, "localhost", *addresses) or host.startswith("127."):
        stores |= {Listener(_STORE, *place) for place in table.values() if place[1] == port}
    return (found - here) | stores


def listening_sockets(folder: Path = Path("/proc/net")) -> Mapping[int, tuple[str, int]]:
    """Address and port of all TCP sockets that listen in this network namespace, by inode; none if not on Linux."""
    found = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (folder / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS:
                    found[int(fields[9])] = _place(fields[1])
    return found


def _place(text: str) -> tuple[str, int]:
    """Address and port of such as ``0100007F:1F90``: words of 32 bits in the byte order of this machine."""
    words, port = text.split(":")
    packed = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), int(port, 16)


def socket_inodes(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open; none if this user may not look."""
    links: list[str] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                links.append(os.readlink(path))
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def interface_addresses(name: str, table: Path = Path("/proc/net/if_inet6")) -> Iterable[str]:
    """IPv6 addresses of an interface."""
    with suppress(OSError):
        for line in table.read_text().splitlines():
            address, *_, interface = line.split()
            if interface == name:
                yield str(ip_address(bytes.fromhex(address)))
