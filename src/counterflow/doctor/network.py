"""Names, interfaces and ports of this node, as gloo and torchrun use them."""

import fcntl
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from counterflow.doctor.bounded import bounded
from counterflow.doctor.check import Check, Status

SLOW_NAME = 1.0
"""Seconds to resolve a name, from which on it delays every start."""
_PATIENCE = 3.0
"""Seconds that a name may take at all."""

_SIOCGIFADDR = 0x8915
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Resolution:
    """What became of a host's name."""

    name: str
    address: str | None
    seconds: float
    error: str = ""


def resolve(name: str) -> Resolution:
    """Both ways, name to address and back to the full name, as torchrun does."""

    def both_ways() -> str:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
        socket.getfqdn(name)
        return address

    start = time.perf_counter()
    try:
        address, error = bounded(_PATIENCE, both_ways), ""
    except TimeoutError as late:
        address, error = None, str(late)
    except (OSError, UnicodeError) as unknown:
        address, error = None, getattr(unknown, "strerror", None) or str(unknown)
    return Resolution(name, address, time.perf_counter() - start, error)


def host_name(found: Resolution) -> Check:
    advice = f"torchrun --local-addr={_LOOPBACK} on one node, or name this host in /etc/hosts: torchrun waits for it"
    if found.address is None:
        return Check("host name", Status.WARN, f"{found.name} does not resolve: {found.error}", advice)
    text = f"{found.name} is {found.address}, found in {1e3 * found.seconds:.1f} ms"
    return Check("host name", Status.WARN, text, advice) if found.seconds > SLOW_NAME else _ok("host name", text)


def interfaces() -> dict[str, str]:
    """The IPv4 address of every network interface that has one."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                request = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            addresses[name] = socket.inet_ntoa(request[20:24])
    return addresses


def gloo_address(setting: str | None, own: str | None, available: Mapping[str, str]) -> tuple[str, str | None]:
    """How gloo chooses the address that it listens on, and which one that is.

    ``setting`` is GLOO_SOCKET_IFNAME, ``own`` what this host's name resolves to, ``available`` are the `interfaces`.
    Without the first gloo takes the second if it is this host's, else the loopback address.
    """
    if setting:
        addresses = [available.get(name) for name in setting.split(",")]
        return f"GLOO_SOCKET_IFNAME={setting}", None if None in addresses else addresses[0]
    if own is not None and can_bind(own) is None:
        return "the host's name", own
    return "nothing else to be found", _LOOPBACK


def interface(way: str, address: str | None, one_node: bool, available: Mapping[str, str]) -> Check:
    """``way`` and ``address``: what `gloo_address` found."""
    known = ", ".join(f"{name} ({text})" for name, text in available.items()) or "none"
    if address is None:
        return Check("interface", Status.FAIL, f"{way}: no such interface with an address", f"one of {known}")
    name = next((name for name, text in available.items() if text == address), None)
    found = f"gloo listens on {address}{f' ({name})' if name else ''}, by {way}"
    if not one_node and address.startswith("127."):
        return Check(
            "interface",
            Status.FAIL,
            f"{found}: other nodes cannot reach it",
            f"GLOO_SOCKET_IFNAME=NAME on every node, one of {known}",
        )
    return _ok("interface", found)


def port(address: str) -> Check:
    """Whether a free TCP port can be had on ``address``."""
    error = can_bind(address)
    if error is None:
        return _ok("port", f"a free one can be had on {address}")
    return Check("port", Status.FAIL, f"{address}: {error}", "free some ports, or another GLOO_SOCKET_IFNAME")


def can_bind(address: str) -> str | None:
    """Why no TCP port of ``address`` can be listened on; nothing if one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _ok(name: str, found: str) -> Check:
    return Check(name, Status.OK, found)
