"""Checks of this node's name, interfaces and ports, as gloo and torchrun use them."""

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from counterflow.doctor.check import Check, Status, with_timeout
from counterflow.transport.interfaces import address

SLOW_NAME = 1.0
"""Seconds to resolve a name; above this it delays every start."""
_NAME_TIMEOUT = 3.0
"""Seconds before a name counts as unresolved."""
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class NameLookup:
    """Result of resolving a host name."""

    name: str
    address: str | None
    seconds: float
    error: str = ""


def resolve(name: str) -> NameLookup:
    """Resolve ``name`` to an address and back to the full name, as torchrun does."""

    def both_ways() -> str:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
        socket.getfqdn(name)
        return address

    start = time.perf_counter()
    address, error = None, ""
    try:
        address = with_timeout(_NAME_TIMEOUT, both_ways)
    except (OSError, UnicodeError) as failure:  # TimeoutError is an OSError
        error = getattr(failure, "strerror", None) or str(failure)
    return NameLookup(name, address, time.perf_counter() - start, error)


def check_host_name(lookup: NameLookup) -> Check:
    advice = f"torchrun --local-addr={_LOOPBACK} on one node, or name this host in /etc/hosts: torchrun waits for it"
    if lookup.address is None:
        return Check("host name", Status.WARN, f"{lookup.name} does not resolve: {lookup.error}", advice)
    result = f"{lookup.name} is {lookup.address}, found in {1e3 * lookup.seconds:.1f} ms"
    return Check.warn_if(lookup.seconds > SLOW_NAME, "host name", result, advice)


def interfaces() -> dict[str, str]:
    """IPv4 addresses of this node's network interfaces, by name."""
    addresses = {}
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # raised for an interface without an IPv4 address
            addresses[name] = address({"GLOO_SOCKET_IFNAME": name})
    return addresses


def gloo_address(setting: str | None, own: str | None, available: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the reason for gloo's choice of a listening address, and the address, ``None`` if there is none.

    ``setting`` is GLOO_SOCKET_IFNAME, ``own`` the address of this host's name, ``available`` the `interfaces`.
    Without ``setting`` gloo takes ``own`` if this host can listen there, otherwise the loopback address.
    """
    if setting:
        addresses = [available.get(name) for name in setting.split(",")]
        return f"GLOO_SOCKET_IFNAME={setting}", None if None in addresses else addresses[0]
    if own is not None and bind_error(own) is None:
        return "the host's name", own
    return "nothing else to be found", _LOOPBACK


def check_interface(reason: str, address: str | None, one_node: bool, available: Mapping[str, str]) -> Check:
    """Check that gloo listens on an interface that the other ranks reach.

    Args:
        reason: First result of `gloo_address`.
        address: Second result of `gloo_address`.
        one_node: True if all ranks run on this node.
        available: The `interfaces` of this node.
    """
    known = ", ".join(f"{name} ({text})" for name, text in available.items()) or "none"
    if address is None:
        return Check("interface", Status.FAIL, f"{reason}: no such interface with an address", f"one of {known}")
    name = next((f" ({name})" for name, text in available.items() if text == address), "")
    result = f"gloo listens on {address}{name}, by {reason}"
    if one_node or not address.startswith("127."):
        return Check("interface", Status.OK, result)
    advice = f"GLOO_SOCKET_IFNAME=NAME on every node, one of {known}"
    return Check("interface", Status.FAIL, f"{result}: other nodes cannot reach it", advice)


def check_port(address: str) -> Check:
    """Check that a free TCP port is available on ``address``."""
    error = bind_error(address)
    if error is None:
        return Check("port", Status.OK, f"a free one is available on {address}")
    return Check("port", Status.FAIL, f"{address}: {error}", "free some ports, or another GLOO_SOCKET_IFNAME")


def bind_error(address: str) -> str | None:
    """Return the reason why no TCP socket can listen on ``address``, or ``None`` if one can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
    except OSError as error:
        return error.strerror or str(error)
    return None
