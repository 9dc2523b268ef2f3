"""The processes of a run: rendezvous, a process group for every directed edge, and what ranks tell each other outside
the two streams (sizes before the start, summaries after the end, progress for the display)."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from counterflow.message import Tag
from counterflow.topology import Edge, Topology
from counterflow.transport.buffers import CpuGloo, MessageBuffers, medium
from counterflow.transport.channel import ChannelError, Watchdog, gloo_reason
from counterflow.transport.control import ControlThread
from counterflow.transport.message_layout import MessageLayout
from counterflow.transport.remote import P2PEndpoint, RemoteReceiver, RemoteSender
from counterflow.transport.rendezvous import join
from counterflow.transport.stop_consensus import StopConsensus

_LIFELINE = 1
"""The tag of the one message that says that a rank ends in good order."""

_GRACE = 1.0
"""Seconds in which an edge may notice the loss as well, and name the batch."""


class Stateful(Protocol):
    def state(self) -> str: ...


class Communicator:
    """The processes of a run as one of them sees them; a single process needs no process group at all."""

    def __init__(
        self,
        store: Store | None,
        rank: int,
        size: int,
        watch: Watchdog,
        on_halt: Callable[[int], None] = lambda signal: None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.watch = watch
        self.restart_count = 0
        """How many processes were this rank before."""
        self._store = store
        self.stop = StopConsensus(rank, watch, on_halt)
        self.posted = 0
        """Notes that this rank has left so far."""
        self._posting = threading.Lock()
        self._notes: dict[str, str] = {}
        self._groups: dict[Edge, tuple[dist.ProcessGroup, int]] = {}
        """This rank's edges to other processes: the group of each, and who is at the other end."""
        self._medium: MessageBuffers = CpuGloo()
        self._lifelines: list[threading.Thread] = []
        self._channels: list[Stateful] = []
        self._control: ControlThread | None = None
        if store is not None and size > 1:
            self._control = ControlThread(store, rank, size, self.stop, self.state)
            watch.explain = self._control.inquire

    def request_stop(self, signal: int) -> None:
        """Have all ranks stop after one and the same batch, because of ``signal``; returns at once."""
        if self._control is None:
            self.stop.agree(self.stop.request(signal))
        else:
            self._control.request(signal)

    def state(self) -> str:
        """What this rank waits for, and a line for each of its channels to other ranks."""
        return "\n  ".join([self.watch.state(), *(channel.state() for channel in self._channels)])

    def open_edges(self, topology: Topology, backend: str, device: torch.device) -> None:
        """Create the process groups of all edges between processes, in the same order everywhere, and warm them up."""
        self._medium = medium(backend, device)
        timeout = timedelta(seconds=self.watch.timeout)
        for edge in topology.remote_edges():
            ends = [topology.rank_of(edge.source), topology.rank_of(edge.destination)]
            try:
                group = dist.new_group(ends, backend=backend, timeout=timeout)
                if isinstance(group, dist.ProcessGroup):  # this rank is one of the two ends
                    (peer,) = set(ends) - {self.rank}
                    self._groups[edge] = group, peer
                    # The first operation of a group connects its sockets or builds its communicator.
                    dist.all_reduce(torch.zeros(1, device=device if backend == "nccl" else "cpu"), group=group)
            except RuntimeError as error:
                raise ChannelError(f"rank {self.rank}: {edge}: was not opened ({gloo_reason(error)})") from error

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

    def sender(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> RemoteSender:
        sender = RemoteSender(self._wire(edge, layouts))
        self._channels.append(sender)
        return sender

    def receiver(
        self, edge: Edge, layouts: Callable[[Tag], MessageLayout], depth: int, tags: Iterator[Tag]
    ) -> RemoteReceiver:
        receiver = RemoteReceiver(self._wire(edge, layouts), depth, tags)
        self._channels.append(receiver)
        return receiver

    def _wire(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> P2PEndpoint:
        group, peer = self._groups[edge]
        return P2PEndpoint(edge, self.rank, peer, layouts, self._medium, self.watch, group)

    def all_gather(self, value: Any, purpose: str) -> list[Any]:
        """Every rank's ``value`` in rank order, on every rank. A barrier: raises `ChannelError` if a rank is lost."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            explanation = self.watch.explain() if "imed out" in str(error) else ""
            raise ChannelError(f"rank {self.rank}: lost a rank while all gather {purpose}{explanation}") from error
        return values

    def send_report(self, text: str) -> None:
        """Leave a note for rank 0, on whatever thread; does not wait for anybody."""
        with self._posting:
            key = f"note/{self.rank}/{self.posted}"
            if self._store is None:
                self._notes[key] = text
            else:
                self._store.set(key, text)
            self.posted += 1

    def poll_report(self, rank: int, i: int) -> str | None:
        """Take note ``i`` of ``rank`` if it is there."""
        key = f"note/{rank}/{i}"
        if self._store is None:
            return self._notes.pop(key, None)
        if not self._store.check([key]):
            return None
        text: str = self._store.get(key).decode()
        self._store.delete_key(key)
        return text

    @property
    def over(self) -> bool:
        """Whether who was this rank before has come to the end of the run."""
        return False

    def restarts_at(self, first: Callable[[int, Edge], Tag | None]) -> None:
        """``first(batches, edge)`` is what a rank that begins after so many batches takes first from ``edge``."""

    def complete(self, batches: int) -> None:
        """There is a whole checkpoint after so many batches."""

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        if self.size > 1:
            for peer in {peer for _, peer in self._groups.values()}:
                dist.send(torch.empty(1), peer, tag=_LIFELINE)
            for thread in self._lifelines:
                thread.join(self.watch.timeout)
            dist.destroy_process_group()


def connect(
    store: Store | None,
    rank: int,
    size: int,
    *,
    timeout: float,
    on_halt: Callable[[int], None] = lambda signal: None,
) -> Communicator:
    """Join the processes that meet in ``store``; every wait in this comm lasts ``timeout`` seconds at most.

    ``on_halt`` hears of the signal because of which the run is to stop, on whatever thread.
    """
    watch = Watchdog(timeout)
    if store is None or size == 1:
        return Communicator(None, rank, size, watch, on_halt)
    limit = timedelta(seconds=timeout)
    try:
        store = PrefixStore(join(store, rank, size, timeout), store)
        dist.init_process_group("gloo", store=PrefixStore("gloo", store), rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        raise ChannelError(f"rank {rank}: the {size} ranks did not meet within {timeout:g} s: {error}") from error
    return Communicator(PrefixStore("notes", store), rank, size, watch, on_halt)
