"""The processes of a run: rendezvous, a process group for every directed edge, and what ranks tell each other outside
the two streams (sizes before the start, summaries after the end, progress for the display)."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous as env_rendezvous

from counterflow.message import Tag
from counterflow.topology import Edge, Topology
from counterflow.transport.channel import ChannelError, Watch
from counterflow.transport.frame import Frame
from counterflow.transport.medium import HostMedium, Medium, medium
from counterflow.transport.remote import RemoteReceiver, RemoteSender, Wire

_LIFELINE = 1
"""The tag of the one message that says that a rank ends in good order."""

_GRACE = 1.0
"""Seconds in which an edge may notice the loss as well, and name the batch."""


def rendezvous(timeout: float) -> tuple[Store | None, int, int]:
    """The store, rank and number of processes that the launcher's environment names; no store for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None, 0, 1
    store, rank, size = next(env_rendezvous("env://", timeout=timedelta(seconds=timeout)))
    return store, rank, size


class World:
    """The processes of a run as one of them sees them; a single process needs no process group at all."""

    def __init__(self, store: Store | None, rank: int, size: int, watch: Watch) -> None:
        self.rank = rank
        self.size = size
        self.watch = watch
        self._store = store
        self._notes: dict[str, str] = {}
        self._groups: dict[Edge, tuple[dist.ProcessGroup, int]] = {}
        """This rank's edges to other processes: the group of each, and who is at the other end."""
        self._medium: Medium = HostMedium()
        self._lifelines: list[threading.Thread] = []

    def open_edges(self, topology: Topology, backend: str, device: torch.device) -> None:
        """Create the process groups of all edges between processes, in the same order everywhere, and warm them up."""
        self._medium = medium(backend, device)
        timeout = timedelta(seconds=self.watch.timeout)
        for edge in topology.crossing():
            ends = [topology.rank_of(edge.source), topology.rank_of(edge.destination)]
            group = dist.new_group(ends, backend=backend, timeout=timeout)
            if isinstance(group, dist.ProcessGroup):  # this rank is one of the two ends
                (peer,) = set(ends) - {self.rank}
                self._groups[edge] = group, peer
                # The first operation of a group connects its sockets or builds its communicator.
                dist.all_reduce(torch.zeros(1, device=device if backend == "nccl" else "cpu"), group=group)

        for peer in {peer for _, peer in self._groups.values()}:
            thread = threading.Thread(target=self._look_after, args=(peer,), name=f"rank {peer}", daemon=True)
            thread.start()
            self._lifelines.append(thread)

    def _look_after(self, peer: int) -> None:
        """Notice that ``peer`` dies: gloo does not while it has half a message for it, on that message's own socket."""
        try:
            buffer = torch.empty(1)
            work = dist.irecv(buffer, peer, tag=_LIFELINE)
            assert work is not None
            work.wait(timedelta(days=365))
        except RuntimeError:
            time.sleep(_GRACE)
            self.watch.lose(peer)

    def sender(self, edge: Edge, frames: Callable[[Tag], Frame]) -> RemoteSender:
        return RemoteSender(self._wire(edge, frames))

    def receiver(self, edge: Edge, frames: Callable[[Tag], Frame], depth: int, tags: Iterator[Tag]) -> RemoteReceiver:
        return RemoteReceiver(self._wire(edge, frames), depth, tags)

    def _wire(self, edge: Edge, frames: Callable[[Tag], Frame]) -> Wire:
        group, peer = self._groups[edge]
        return Wire(edge, self.rank, peer, group, frames, self._medium, self.watch)

    def gather(self, value: Any, purpose: str) -> list[Any]:
        """Every rank's ``value`` in rank order, on every rank. A barrier: raises `ChannelError` if a rank is lost."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise ChannelError(f"rank {self.rank}: lost a rank while all gather {purpose}") from error
        return values

    def post(self, key: str, text: str) -> None:
        """Leave a note for rank 0; does not wait for anybody."""
        if self._store is None:
            self._notes[key] = text
        else:
            self._store.set(key, text)

    def collect(self, key: str) -> str | None:
        """Take the note under ``key`` if it is there."""
        if self._store is None:
            return self._notes.pop(key, None)
        if not self._store.check([key]):
            return None
        text: str = self._store.get(key).decode()
        self._store.delete_key(key)
        return text

    def close(self) -> None:
        if self.size > 1:
            for peer in {peer for _, peer in self._groups.values()}:
                dist.send(torch.empty(1), peer, tag=_LIFELINE)
            for thread in self._lifelines:
                thread.join(self.watch.timeout)
            dist.destroy_process_group()


def connect(store: Store | None, rank: int, size: int, *, timeout: float) -> World:
    """Join the processes that meet in ``store``; every wait in this world lasts ``timeout`` seconds at most."""
    watch = Watch(timeout)
    if store is None or size == 1:
        return World(None, rank, size, watch)
    limit = timedelta(seconds=timeout)
    try:
        dist.init_process_group("gloo", store=PrefixStore("gloo", store), rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        raise ChannelError(f"rank {rank}: the {size} ranks did not meet within {timeout:g} s: {error}") from error
    return World(PrefixStore("notes", store), rank, size, watch)
