"""Which addresses the sockets of a run listen on: those of the configured interface, and loopback on a single node.

Two things listen in a rank's process. Gloo (and NCCL) open a socket for every process group, on the interface that
GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) names, and else wherever the machine's name leads (on the first interface that
is not loopback). The store, at which the ranks meet, lives in rank 0 unless torchrun's agent hosts it; torch binds it
to all interfaces, but takes a socket that we have bound to MASTER_ADDR alone.
"""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address

from torch._C._distributed_c10d import Store, TCPStore

from counterflow.transport.channel import ChannelError

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_LOOPBACK = ("lo", "lo0")
"""The names that Linux and BSD give it."""

_SIOCGIFADDR = 0x8915
"""Linux's question for the address of an interface."""

_PAUSE = 0.1
"""Seconds between two attempts to reach the store."""


def rendezvous(timeout: float) -> tuple[Store | None, int, int]:
    """The store, rank and number of processes that the launcher's environment names; no store for a single process.

    Tells gloo and NCCL by way of the environment where to listen. Raises ``ValueError`` where the environment is
    wrong, and `ChannelError` where the store was not found, or not all ranks came, within ``timeout`` seconds.
    """
    size = _number(os.environ, "WORLD_SIZE", 1, 2**31 - 1) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return None, 0, 1
    rank = _number(os.environ, "RANK", 0, size - 1)
    host, port = _text(os.environ, "MASTER_ADDR"), _number(os.environ, "MASTER_PORT", 1, 2**16 - 1)
    os.environ.update(interfaces(os.environ))
    hosts = rank == 0 and not _agent_hosts(os.environ)
    listening = listen(host, port).detach() if hosts else None
    try:
        if listening is None:
            _reach(host, port, timeout)
        limit = timedelta(seconds=timeout)
        store = TCPStore(host, port, size, is_master=hosts, timeout=limit, master_listen_fd=listening)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ChannelError(f"rank {rank}: the {size} ranks did not meet at {host}:{port}: {reason}") from error
    return store, rank, size


def interfaces(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to ``environment`` for gloo and NCCL to listen on loopback alone where all ranks are on one node.

    What is set stays. ``ValueError`` if GLOO_SOCKET_IFNAME names an interface that this machine does not have.
    """
    found = [name for _, name in socket.if_nameindex()]
    chosen = environment.get(_GLOO, "")
    for name in filter(None, chosen.split(",")):
        if name not in found:
            raise ValueError(f"{_GLOO}={chosen}: {name} is no interface of this machine, it has {', '.join(found)}")
    loopback = next((name for name in _LOOPBACK if name in found), None)
    if chosen or loopback is None or not _on_one_node(environment):
        return {}
    # NCCL takes names for beginnings of names, unless they are marked.
    return {_GLOO: loopback, **({} if environment.get(_NCCL) else {_NCCL: f"={loopback}"})}


def address(environment: Mapping[str, str]) -> str:
    """Where this process listens: at the interface that is named, else at this machine's name, as gloo does."""
    chosen = environment.get(_GLOO, "").split(",")[0]
    if not chosen:
        return socket.gethostbyname(socket.gethostname())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("256s", chosen.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address of ``host`` and on no other; ``ValueError`` if this machine cannot."""
    reason = "has no address"
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                return socket.create_server(address[:2], family=family)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
    except socket.gaierror as error:
        reason = error.strerror or reason
    raise ValueError(f"MASTER_ADDR={host} MASTER_PORT={port}: rank 0 cannot listen there ({reason})")


def _reach(host: str, port: int, timeout: float) -> None:
    """Return once somebody listens there. TCPStore would wait as well, but print pages about every attempt."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(_PAUSE)


def _on_one_node(environment: Mapping[str, str]) -> bool:
    """Whether all ranks are on this machine, as torchrun says, or must be, since they meet on its loopback address."""
    if "LOCAL_WORLD_SIZE" in environment:
        return environment["LOCAL_WORLD_SIZE"] == environment.get("WORLD_SIZE")
    host = environment.get("MASTER_ADDR", "")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Another name may be this machine's own, which is on loopback in many a hosts file, and lead others elsewhere.
        return host == "localhost"


def _agent_hosts(environment: Mapping[str, str]) -> bool:
    """Whether torchrun's agent hosts the store. It binds to all interfaces, in a process that is not ours."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise ValueError(f"{name}: must be set for WORLD_SIZE={environment.get('WORLD_SIZE')} processes to meet")
    return value


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    value = _text(environment, name)
    if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
        raise ValueError(f"{name}={value}: must be a whole number of {least} to {most}")
    return int(value)
