"""Communicator of a run in which a killed rank is replaced while the others wait (``engine.recovery=rank``).

No process group joins the ranks, as none outlives a member: edges are replaying channels, and gathers and reports go
through the launcher's store.
"""

import pickle
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._distributed_c10d import Store

from counterflow.message import Tag
from counterflow.recovery.replaying_channels import ReplayEndpoint, ReplayingReceiver, ReplayingSender
from counterflow.recovery.sealed_store import SealedStore, check_same_secret
from counterflow.recovery.supervisor import SupervisedRank
from counterflow.topology import Edge, Piece, Topology
from counterflow.transport.buffers import MessageLayout, make_buffers
from counterflow.transport.communicator import Communicator
from counterflow.transport.control import Watchdog
from counterflow.transport.rendezvous import LauncherStore, address, join
from counterflow.transport.shared_secret import RunKey

_PIECE = 4 << 20
"""Bytes of a value of the store: torch's TCPStore refuses 8 MB and more."""


class RecoverableCommunicator(Communicator):
    """Gathers and reports stay in the store, where a process that replaces rank 0 finds them."""

    def __init__(
        self,
        store: LauncherStore,
        size: int,
        watchdog: Watchdog,
        on_stop: Callable[[int], None],
        run_key: RunKey,
        restart_count: int,
        replay_bytes: int,
    ) -> None:
        """Start the control thread.

        Args:
            store: Store of this run.
            size: Number of ranks.
            watchdog: Limit of all waits.
            on_stop: Called once with the signal that stops the run, on any thread.
            run_key: Key that only ranks of this run have.
            restart_count: Processes that were this rank before.
            replay_bytes: Bytes of messages that every edge holds in memory.
        """
        self._run_key = run_key
        self._replay_bytes = replay_bytes
        self._first: Callable[[int, Edge], Tag | None] = lambda batches, edge: None
        self._checkpoint = b""
        super().__init__(store, size, watchdog, on_stop)
        self.restart_count = restart_count
        if restart_count:
            self.reports_sent = _count(lambda i: store.has(f"report/{self.rank}/{i}"))
        assert self._control is not None
        self._control.on_poll = self._drop_replays

    def open_edges(self, topology: Topology, backend: str, device: torch.device) -> None:
        self._buffers = make_buffers(backend, device)
        self._topology = topology

    def sender(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> ReplayingSender:  # type: ignore[override]
        endpoint = self._replay_endpoint(edge, layouts, edge.destination)
        return self._opened(ReplayingSender(endpoint, address(), self._replay_bytes))

    def receiver(  # type: ignore[override]
        self, edge: Edge, layouts: Callable[[Tag], MessageLayout], depth: int, tags: Iterator[Tag]
    ) -> ReplayingReceiver:
        return self._opened(ReplayingReceiver(self._replay_endpoint(edge, layouts, edge.source), depth, tags))

    def _replay_endpoint(self, edge: Edge, layouts: Callable[[Tag], MessageLayout], other: Piece) -> ReplayEndpoint:
        peer = self._topology.rank_of(*other)
        return ReplayEndpoint(edge, self.rank, peer, layouts, self._buffers, self.watchdog, self._store, self._run_key)

    def keep_replay_from(self, first: Callable[[int, Edge], Tag | None]) -> None:
        self._first = first

    @property
    def run_is_over(self) -> bool:  # type: ignore[override]
        return self.restart_count > 0 and self._store.has(f"gather/the end/{self.rank}")

    def announce_checkpoint(self, batches: int) -> None:
        self._store.set("checkpoint", str(batches))

    def _drop_replays(self) -> None:
        """Drop the messages that no process needs which restarts from the newest checkpoint."""
        if not self._store.has("checkpoint"):
            return
        before, self._checkpoint = self._checkpoint, self._store.get("checkpoint")
        if self._checkpoint != before:
            batches = int(self._checkpoint)
            for sender in (channel for channel in self._channels if isinstance(channel, ReplayingSender)):
                if tag := self._first(batches, sender.endpoint.edge):
                    sender.drop(tag)

    def all_gather(self, value: Any, purpose: str) -> list[Any]:
        self._put(value, purpose)
        return self._take_all(purpose)

    def gather(self, value: Any, purpose: str) -> list[Any] | None:
        self._put(value, purpose)
        return self._take_all(purpose) if self.rank == 0 else None

    def _put(self, value: Any, purpose: str) -> None:
        """Leave ``value`` in the store, in pieces; their number comes last."""
        data, key = pickle.dumps(value), f"gather/{purpose}/{self.rank}"
        starts = range(0, len(data), _PIECE)
        for i, start in enumerate(starts):
            self._store.set(f"{key}/{i}", data[start : start + _PIECE])
        self._store.set(key, str(len(starts)))

    def _take_all(self, purpose: str) -> list[Any]:
        deadline = time.monotonic() + self.watchdog.timeout
        values = []
        for rank in range(self.size):
            key = f"gather/{purpose}/{rank}"
            if not self._store.await_key(key, deadline):
                raise self.watchdog.timed_out(f"rank {self.rank}: {purpose} of rank {rank}")
            pieces = (self._store.get(f"{key}/{i}") for i in range(int(self._store.get(key))))
            values.append(pickle.loads(b"".join(pieces)))
        return values

    def poll_report(self, rank: int, i: int) -> str | None:
        key = f"report/{rank}/{i}"
        return self._store.get(key).decode() if self._store.has(key) else None

    def close(self) -> None:
        assert self._control is not None
        self._control.close()
        for channel in self._channels:
            channel.end()


def _count(there: Callable[[int], bool]) -> int:
    """Number of the integers 0, 1, .. that are ``there``, all up to that number; at most 2**23."""
    return bisect_left(range(2**23), True, key=lambda i: not there(i))


def connect_recoverable(
    store: Store,
    size: int,
    supervised: SupervisedRank,
    *,
    rank: int,
    timeout: float,
    on_stop: Callable[[int], None],
    replay_bytes: int,
    secret: bytes | None = None,
) -> RecoverableCommunicator:
    """Meet the other ranks of a run, or take the place of one.

    Args:
        store: Store of `rendezvous`.
        size: Number of ranks.
        supervised: This process, as its supervisor forked it.
        rank: This process.
        timeout: Limit of every wait, in seconds.
        on_stop: Called once with the signal that stops the run, on any thread.
        replay_bytes: Bytes of messages that every edge holds in memory.
        secret: Shared secret of all ranks; without one, ranks trust whatever reaches the store.

    Raises:
        ChannelError: A rank did not come within ``timeout``, or has another secret, or the store does not answer.
    """
    launcher, attempt = LauncherStore(store, rank), supervised.attempt
    if attempt is None:
        attempt = join(launcher, size, timeout)
        supervised.remember(attempt.encode())
    own, run_key = launcher.with_prefix(attempt), RunKey(attempt.encode(), secret)
    check_same_secret(own, size, run_key, timeout)
    return RecoverableCommunicator(
        own if secret is None else SealedStore(own, run_key),
        size,
        Watchdog(timeout),
        on_stop,
        run_key,
        supervised.restart_count,
        replay_bytes,
    )
