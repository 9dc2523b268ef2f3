"""The processes of a run in which each may die and be replaced while the others wait (``engine.recovery=rank``).

No process group joins them, as none outlives a member: edges are `durable` ones, and what ranks tell each other goes
through the store, which is the launcher's.
"""

import os
import pickle
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from counterflow.message import Tag
from counterflow.recovery.replaying import Link, ReplayingReceiver, ReplayingSender
from counterflow.topology import Edge, Topology
from counterflow.transport.buffers import medium
from counterflow.transport.channel import ChannelError, Watchdog
from counterflow.transport.communicator import Communicator
from counterflow.transport.interface import address
from counterflow.transport.message_layout import MessageLayout
from counterflow.transport.rendezvous import join

_PAUSE = 0.02
"""Seconds between looks at the store."""


class RecoverableCommunicator(Communicator):
    """Notes stay in the store, where whoever replaces rank 0 finds them."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        watch: Watchdog,
        on_halt: Callable[[int], None],
        token: bytes,
        life: int,
        replay: int,
    ) -> None:
        """``token`` is known to the ranks of this run alone; ``life`` counts the processes that were this rank before;
        every edge holds ``replay`` bytes of messages in memory."""
        self._senders: list[ReplayingSender] = []
        self._token = token
        self._replay = replay
        self._first: Callable[[int, Edge], Tag | None] = lambda batches, edge: None
        super().__init__(store, rank, size, watch, on_halt)
        self.restart_count = life
        assert self._control is not None
        self._control.on_whole = self._forget
        if life:
            self.posted = _count(lambda i: store.check([f"note/{rank}/{i}"]))

    def open_edges(self, topology: Topology, backend: str, device: torch.device) -> None:
        self._medium = medium(backend, device)
        self._topology = topology

    def sender(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> ReplayingSender:  # type: ignore[override]
        sender = ReplayingSender(self._link(edge, layouts, edge.destination), address(os.environ), self._replay)
        self._senders.append(sender)
        self._channels.append(sender)
        return sender

    def receiver(  # type: ignore[override]
        self, edge: Edge, layouts: Callable[[Tag], MessageLayout], depth: int, tags: Iterator[Tag]
    ) -> ReplayingReceiver:
        receiver = ReplayingReceiver(self._link(edge, layouts, edge.source), depth, tags)
        self._channels.append(receiver)
        return receiver

    def _link(self, edge: Edge, layouts: Callable[[Tag], MessageLayout], block: int) -> Link:
        peer = self._topology.rank_of(block)
        assert self._store is not None
        return Link(edge, self.rank, peer, layouts, self._medium, self.watch, self._store, self._token)

    def restarts_at(self, first: Callable[[int, Edge], Tag | None]) -> None:
        self._first = first

    @property
    def over(self) -> bool:
        assert self._store is not None
        return self.restart_count > 0 and self._store.check([f"gather/the end/{self.rank}"])

    def complete(self, batches: int) -> None:
        assert self._store is not None
        self._store.set("whole", str(batches))

    def _forget(self, batches: int) -> None:
        for sender in self._senders:
            tag = self._first(batches, sender.link.edge)
            if tag is not None:
                sender.forget(tag)

    def all_gather(self, value: Any, purpose: str) -> list[Any]:
        assert self._store is not None
        self._store.set(f"gather/{purpose}/{self.rank}", b64encode(pickle.dumps(value)).decode())
        deadline = time.monotonic() + self.watch.timeout
        values = []
        for rank in range(self.size):
            key = f"gather/{purpose}/{rank}"
            while not self._store.check([key]):
                if time.monotonic() > deadline:
                    what = f"rank {self.rank}: {purpose} of rank {rank}: nothing for {self.watch.timeout:g} s"
                    raise ChannelError(f"{what} (engine.timeout){self.watch.explain()}")
                time.sleep(_PAUSE)
            values.append(pickle.loads(b64decode(self._store.get(key))))
        return values

    def poll_report(self, rank: int, i: int) -> str | None:
        assert self._store is not None
        key = f"note/{rank}/{i}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def close(self) -> None:
        assert self._control is not None
        self._control.close()
        for channel in self._channels:
            assert isinstance(channel, ReplayingSender | ReplayingReceiver)
            channel.end()


def _count(there: Callable[[int], bool]) -> int:
    """How many of 0, 1, .. are ``there``, which are all up to some number."""
    high = 1
    while there(high - 1):
        high *= 2
    low = high // 2
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle - 1) else (low, middle)
    return low


def connect_recoverable(
    store: Store,
    rank: int,
    size: int,
    *,
    timeout: float,
    on_halt: Callable[[int], None],
    life: int,
    name: str | None,
    log: Callable[[str], None],
    replay: int,
) -> RecoverableCommunicator:
    """Join the processes that meet in ``store``, or take the place of one: then ``name`` is what that one had ``log``
    keep."""
    if name is None:
        name = join(store, rank, size, timeout)
        log(name)
    return RecoverableCommunicator(
        PrefixStore(name, store), rank, size, Watchdog(timeout), on_halt, name.encode(), life, replay
    )
