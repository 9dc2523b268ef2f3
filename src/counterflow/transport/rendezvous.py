"""Rendezvous: the ranks meet at the launcher's store, and agree on a key prefix for this attempt at the run.

torchrun's agent keeps its store when it restarts all ranks, and the agents of several nodes may count restarts
differently. A process may also run several jobs, one after the other, on the same store. So every rank leaves a random
word in the store, and rank 0 answers it with the prefix of the attempt.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from counterflow.rank_info import RankInfo
from counterflow.transport.channel import ChannelError, gloo_reason
from counterflow.transport.interfaces import interfaces, listen

_RECONNECT_INTERVAL = 0.1
"""Seconds between two attempts to connect to the store."""

_POLL_INTERVAL = 0.01
"""Seconds between two looks at the store."""

_stores: dict[tuple[str, int], Store] = {}
"""The stores that this process has joined: a second run uses the first one's, as rank 0 cannot host it twice."""


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
        limit = timedelta(seconds=timeout)
        try:
            if listening is None:
                _await_listener(host, port, timeout)
            store = AgentStore if info.agent_hosts_store else TCPStore
            _stores[host, port] = store(
                host, port, info.size, is_master=hosts, timeout=limit, master_listen_fd=listening
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            text = f"rank {info.rank}: the {info.size} ranks did not meet at {host}:{port}: {reason}"
            raise ChannelError(text) from error
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


class LauncherStore:
    """Key-value store of the launcher as one rank uses it; raises `ChannelError` if it does not answer."""

    def __init__(self, store: Store, rank: int, prefix: str = "") -> None:
        """Put ``prefix`` before all keys; ``rank`` is named in errors."""
        self._store = store
        self._prefix = prefix
        self.rank = rank

    def with_prefix(self, prefix: str) -> "LauncherStore":
        return LauncherStore(self._store, self.rank, f"{self._prefix}{prefix}/")

    def cause(self, error: ChannelError) -> ChannelError:
        """The store's error instead of ``error`` about a lost rank, if that rank may have ended because of it."""
        if isinstance(self._store, AgentStore):
            try:
                self.has("")
            except ChannelError as worse:
                return worse
        return error

    def set(self, key: str, value: str | bytes) -> None:
        self._call(self._store.set, key, value)

    def get(self, key: str) -> bytes:
        """Value of ``key``, which must be there."""
        value: bytes = self._call(self._store.get, key)
        return value

    def has(self, key: str) -> bool:
        return bool(self._call(lambda full_key: self._store.check([full_key]), key))

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
            text = f"rank {self.rank}: the launcher's store{where} does not answer ({gloo_reason(error)})"
            raise ChannelError(text) from None


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
    while not store.has(f"welcome/{word}"):
        if time.monotonic() > deadline:
            raise ChannelError(f"rank {store.rank}: rank 0 did not come within {timeout:g} s (engine.timeout)")
        time.sleep(_POLL_INTERVAL)
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
