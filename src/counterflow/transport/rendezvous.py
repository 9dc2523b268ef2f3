"""Rendezvous: the ranks meet at the launcher's store, and agree on a key prefix for this attempt at the run.

torchrun's agent keeps its store when it restarts all ranks, and the agents of several nodes may count restarts
differently. A process may also run several jobs, one after the other, on the same store. So every rank leaves a random
word in the store, and rank 0 answers it with the prefix of the attempt.

Two things listen in a rank's process; on a single node, on loopback alone. Gloo (and NCCL) open a socket for every
process group, on the interface that GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) names. Without it, gloo uses the address of
the machine's name, and NCCL the first interface that is not loopback. The store lives in rank 0 unless torchrun's agent
hosts it. Torch binds it to all interfaces, but accepts a socket that is already bound to MASTER_ADDR alone.
"""

import contextlib
import fcntl
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from counterflow.rank_info import RankInfo
from counterflow.transport.channel import ChannelError, gloo_reason
from counterflow.transport.keepalive import SILENCE, is_silence, keeping_alive

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_LOOPBACK = ("lo", "lo0")
"""Names of the loopback interface on Linux and on BSD."""

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface."""

_RECONNECT_INTERVAL = 0.1
"""Seconds between two attempts to connect to the store."""

_POLL_INTERVAL = 0.01
"""Seconds between two looks at the store."""

_NOTED_WITHIN = 0.2
"""Seconds after which a call of another thread has noted why it failed."""

_CAUSE_WITHIN = 1.0
"""Seconds for the store to answer, once its machine would have been noticed as silent."""

_stores: dict[tuple[str, int], Store] = {}
"""The stores that this process has joined: a second run uses the first one's, as rank 0 cannot host it twice."""


def interfaces(info: RankInfo, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables to set so that gloo and NCCL listen where GLOO_SOCKET_IFNAME says.

    Without it, they listen on loopback alone if all ranks are on one node. Names stay as they are. An address, or a
    network such as 10.0.0.0/24, gets the name of the interface with that address, or with one in that network.

    Raises:
        ValueError: GLOO_SOCKET_IFNAME names an interface that this machine does not have.
    """
    chosen = environment.get(_GLOO, "")
    if chosen:
        name = interface_names(chosen)
        return {} if name == chosen else _on(name.split(",")[0], environment) | {_GLOO: name}
    found = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in _LOOPBACK if name in found), None)
    return {} if loopback is None or not info.one_node else _on(loopback, environment)


def _on(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    # NCCL reads a name as a prefix, unless it is marked with "=".
    return {_GLOO: name, **({} if environment.get(_NCCL) else {_NCCL: f"={name}"})}


def interface_names(chosen: str) -> str:
    """``chosen``, a value of GLOO_SOCKET_IFNAME, with the name of the interface in place of each address or network.

    Raises:
        ValueError: This machine has no such interface.
    """
    return ",".join(_interface_name(name, chosen) for name in filter(None, chosen.split(",")))


def _interface_name(text: str, chosen: str) -> str:
    found = [name for _, name in socket.if_nameindex()]
    if text in found:
        return text
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            f"{_GLOO}={chosen}: {text} is no interface of this machine, it has {', '.join(found)}"
        ) from None
    addresses = interface_addresses()
    for name, own in addresses.items():
        if ip_address(own) in network:
            return name
    known = ", ".join(f"{name} ({own})" for name, own in addresses.items())
    raise ValueError(f"{_GLOO}={chosen}: no interface of this machine has an address {text}, it has {known}")


def interface_addresses() -> dict[str, str]:
    """IPv4 addresses of this machine's network interfaces, by name."""
    found = {}
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # raised for an interface without an IPv4 address
            found[name] = address({_GLOO: name})
    return found


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


class AgentStore(TCPStore):
    """Store that torchrun's agent hosts: when it dies, so will all ranks. Otherwise rank 0 hosts it."""


def rendezvous(info: RankInfo, timeout: float) -> Store | None:
    """Join the store that the launcher's environment names; None for a single process.

    Sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in this process's environment, where gloo and NCCL read them.

    Args:
        info: This rank.
        timeout: Seconds to wait for the store and for all ranks.

    Raises:
        ValueError: The interface, or the address of a store that rank 0 hosts, is wrong.
        ChannelError: The store does not answer, or a rank does not come, within ``timeout``.
    """
    if info.master is None:
        return None
    os.environ.update(interfaces(info))
    host, port = info.master
    if (host, port) not in _stores:
        hosts = info.is_main and not info.agent_hosts_store
        listening = listen(host, port).detach() if hosts else None
        try:
            if listening is None:
                _await_listener(host, port, timeout)
            store = AgentStore if info.agent_hosts_store else TCPStore
            with keeping_alive():
                _stores[host, port] = store(
                    host,
                    port,
                    info.size,
                    is_master=hosts,
                    timeout=timedelta(seconds=timeout),
                    master_listen_fd=listening,
                )
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ChannelError(
                f"rank {info.rank}: the {info.size} ranks did not meet at {host}:{port}: {reason}"
            ) from error
    return _stores[host, port]


def _await_listener(host: str, port: int, timeout: float) -> None:
    """Wait until the store listens. TCPStore would wait as well, but prints pages about every attempt."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(_RECONNECT_INTERVAL)


class SilentStoreError(ChannelError):
    """The connection to the store ended because nothing answered: its machine is down, or the link to it."""

    def __init__(self, rank: int, where: str) -> None:
        self.reason = (
            f"no answer from the launcher's store{where} for {SILENCE:g} s: its machine is down, or the link to it"
        )
        super().__init__(f"rank {rank}: {self.reason}")


class LauncherStore:
    """Key-value store of the launcher as one rank uses it; raises `ChannelError` if it does not answer."""

    def __init__(self, store: Store, rank: int, prefix: str = "") -> None:
        """Put ``prefix`` before all keys; ``rank`` is named in errors."""
        self._store = store
        self._prefix = prefix
        self._is_silent = threading.Event()
        """Set once the connection ended for silence: later calls fail for other reasons."""
        self.rank = rank

    def with_prefix(self, prefix: str) -> "LauncherStore":
        other = LauncherStore(self._store, self.rank, f"{self._prefix}{prefix}/")
        other._is_silent = self._is_silent
        return other

    def another_connection(self) -> "LauncherStore":
        """The same store on a connection of its own. Raises `ChannelError`."""
        with keeping_alive():
            return LauncherStore(self._call(lambda _: self._store.clone(), ""), self.rank, self._prefix)

    def cause(self, error: ChannelError) -> ChannelError:
        """The store's error instead of ``error`` about a lost rank, if that rank may have ended because of it."""
        if not isinstance(self._store, AgentStore):
            return error
        causes: list[ChannelError] = []

        def ask() -> None:
            try:
                self.has("")
            except SilentStoreError as silence:
                causes.append(ChannelError(f"{error}; {silence.reason}"))
            except ChannelError as worse:
                causes.append(worse)

        # On a thread, as a process that hosts the store and was stopped does not answer, but its machine does.
        asking = threading.Thread(target=ask, name="cause", daemon=True)
        asking.start()
        asking.join(SILENCE + _CAUSE_WITHIN)
        return causes[0] if causes else error

    def set(self, key: str, value: str | bytes) -> None:
        self._call(self._store.set, key, value)

    def get(self, key: str) -> bytes:
        """Value of ``key``, which must be there."""
        return bytes(self._call(self._store.get, key))

    def has(self, key: str) -> bool:
        return bool(self._call(lambda full_key: self._store.check([full_key]), key))

    def await_key(self, key: str, deadline: float, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until ``key`` is there; False if it is not at ``deadline`` (`time.monotonic`), or once ``is_over()``."""
        while not (there := self.has(key)) and time.monotonic() < deadline and not is_over():
            time.sleep(_POLL_INTERVAL)
        return there

    def delete(self, key: str) -> None:
        self._call(self._store.delete_key, key)

    def increment(self, key: str) -> int:
        """Add 1 to the counter ``key``, which starts at 0; return the sum."""
        return int(self._call(self._store.add, key, 1))

    def _call(self, operation: Callable[..., Any], key: str, *value: object) -> Any:
        try:
            return operation(self._prefix + key, *value)
        except RuntimeError as error:
            where = f" at {self._store.host}:{self._store.port}" if isinstance(self._store, TCPStore) else ""
            if is_silence(error):
                self._is_silent.set()
            # The call that sees the silence may be one of another thread, which is about to note it.
            if self._is_silent.wait(_NOTED_WITHIN):
                raise SilentStoreError(self.rank, where) from None
            raise ChannelError(
                f"rank {self.rank}: the launcher's store{where} does not answer ({gloo_reason(error)})"
            ) from None


def join(store: LauncherStore, size: int, timeout: float) -> str:
    """Meet the other ranks; return the prefix of all keys that belong to this attempt.

    Raises:
        ChannelError: A rank did not come within ``timeout`` seconds, or the store does not answer.
    """
    deadline = time.monotonic() + timeout
    word = uuid.uuid4().hex
    if store.rank == 0:
        _welcome(store, word, size, deadline, timeout)
        return word
    store.set(f"hello/{store.rank}", word)
    if not store.await_key(f"welcome/{word}", deadline):
        raise ChannelError(f"rank {store.rank}: rank 0 did not come within {timeout:g} s (engine.timeout)")
    attempt = store.get(f"welcome/{word}").decode()
    store.set(f"joined/{attempt}/{store.rank}", "")
    return attempt


def _welcome(store: LauncherStore, attempt: str, size: int, deadline: float, timeout: float) -> None:
    missing, answered = set(range(1, size)), set[bytes]()
    while missing:
        for rank in sorted(missing):
            if store.has(f"joined/{attempt}/{rank}"):
                missing.remove(rank)
            elif store.has(f"hello/{rank}") and (word := store.get(f"hello/{rank}")) not in answered:
                answered.add(word)  # perhaps of an earlier attempt: then no rank reads the answer
                store.set(f"welcome/{word.decode()}", attempt)
        if missing and time.monotonic() > deadline:
            ranks = ", ".join(map(str, sorted(missing)))
            raise ChannelError(f"rank 0: ranks {ranks} did not come within {timeout:g} s (engine.timeout)")
        time.sleep(_POLL_INTERVAL)
