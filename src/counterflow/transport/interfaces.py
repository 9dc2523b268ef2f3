"""Network interfaces and addresses on which the sockets of a run listen; on a single node, loopback alone.

Two things listen in a rank's process. Gloo (and NCCL) open a socket for every process group, on the interface that
GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) names. Without it, gloo uses the address of the machine's name, and NCCL the
first interface that is not loopback. The store lives in rank 0 unless torchrun's agent hosts it. Torch binds it to all
interfaces, but accepts a socket that is already bound to MASTER_ADDR alone.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Mapping

from counterflow.rank_info import RankInfo

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_LOOPBACK = ("lo", "lo0")
"""Names of the loopback interface on Linux and on BSD."""

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface."""


def interfaces(info: RankInfo, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables to set so that gloo and NCCL listen on loopback alone if all ranks are on one node.

    Variables that are set already stay as they are.

    Raises:
        ValueError: GLOO_SOCKET_IFNAME names an interface that this machine does not have.
    """
    found = [name for _, name in socket.if_nameindex()]
    chosen = environment.get(_GLOO, "")
    for name in filter(None, chosen.split(",")):
        if name not in found:
            raise ValueError(f"{_GLOO}={chosen}: {name} is no interface of this machine, it has {', '.join(found)}")
    loopback = next((name for name in _LOOPBACK if name in found), None)
    if chosen or loopback is None or not info.one_node:
        return {}
    # NCCL reads a name as a prefix, unless it is marked with "=".
    return {_GLOO: loopback, **({} if environment.get(_NCCL) else {_NCCL: f"={loopback}"})}


def address(environment: Mapping[str, str] = os.environ) -> str:
    """Address on which this process listens: that of GLOO_SOCKET_IFNAME, else that of the machine's name, as gloo."""
    chosen = environment.get(_GLOO, "").split(",")[0]
    if not chosen:
        return socket.gethostbyname(socket.gethostname())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("256s", chosen.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on the address of ``host`` and on no other.

    Raises:
        ValueError: This machine cannot listen there.
    """
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
