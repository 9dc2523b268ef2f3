"""Communicator: the ranks of a run, with a process group for every directed edge, and messages outside the two streams
(gathers at the start and the end, reports for rank 0, stop requests)."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from counterflow.message import Tag
from counterflow.topology import Edge, Topology
from counterflow.transport.buffers import MessageLayout, make_buffers, started
from counterflow.transport.channel import ChannelError, gloo_reason
from counterflow.transport.control import LOSS_GRACE, ControlThread, StopConsensus, Watchdog
from counterflow.transport.file_transfer import FileTransfer
from counterflow.transport.keepalive import SILENCE, is_silence, keeping_alive
from counterflow.transport.remote import FOREVER, P2PEndpoint, RemoteReceiver, RemoteSender
from counterflow.transport.rendezvous import LauncherStore, join

_GOODBYE = 1
"""Tag of the one message by which a rank says that it ends in good order."""
_CHECK_INTERVAL = 0.5
"""Seconds between two looks at the other ranks while waiting for what one of them publishes."""

Channel = TypeVar("Channel")


class Communicator:
    """The ranks of a run as one of them sees them; a single process needs no process group at all."""

    def __init__(
        self,
        store: LauncherStore,
        size: int,
        watchdog: Watchdog,
        on_stop: Callable[[int], None] = lambda signal: None,
    ) -> None:
        """Start the control thread, unless this is a single process.

        Args:
            store: Store of this attempt at the run, as this rank uses it; in memory for a single process.
            size: Number of ranks.
            watchdog: Limit of all waits.
            on_stop: Called once with the signal that stops the run, on any thread.
        """
        self.rank = store.rank
        self.size = size
        self.watchdog = watchdog
        self.stop = StopConsensus(store.rank, watchdog, on_stop)
        self.reports_sent = 0
        """Reports of this rank so far."""
        self._reporting = threading.Lock()
        self._groups: dict[Edge, tuple[dist.ProcessGroup, int]] = {}
        """Group and peer of each of this rank's edges to other ranks."""
        self._hosts: dict[int, str] = {}
        """Names of the machines of `_peers`."""
        self._peer_threads: list[threading.Thread] = []
        self._channels: list[Any] = []
        self._store = store
        self._control: ControlThread | None = None
        if size > 1:
            self._control = ControlThread(store, size, self.stop, watchdog, self.state)
            watchdog.explain = self._control.diagnose
            watchdog.find_cause = store.cause

    def request_stop(self, signal: int) -> None:
        """Make all ranks stop after one and the same batch, because of ``signal``; returns at once."""
        if self._control is None:
            self.stop.agree(self.stop.request(signal))
        else:
            self._control.request(signal)

    def state(self) -> str:
        """The wait of this rank, and a line for each of its channels to other ranks."""
        return "\n  ".join([self.watchdog.state(), *(channel.state() for channel in self._channels)])

    def open_edges(self, topology: Topology, backend: str, device: torch.device) -> None:
        """Create the process groups of all edges between ranks, in the same order everywhere, and warm them up."""
        self._buffers = make_buffers(backend, device)
        for edge in topology.remote_edges():
            ends = [topology.rank_of(*edge.source), topology.rank_of(*edge.destination)]
            try:
                # NCCL ends a process whose receive was posted longer ago, and a channel may rest (`FOREVER`); gloo has
                # a limit for each wait.
                limit = FOREVER if backend == "nccl" else self.watchdog.timeout
                group = dist.new_group(ends, backend=backend, timeout=timedelta(seconds=limit))
                if isinstance(group, dist.ProcessGroup):  # this rank is one of the two ends
                    (peer,) = set(ends) - {self.rank}
                    self._groups[edge] = group, peer
                    # The first operation of a group connects its sockets or builds its communicator.
                    if backend == "nccl":
                        self._warm_up_nccl(group, peer, device, sends=ends[0] == self.rank)
                    else:
                        dist.all_reduce(torch.zeros(1), group=group)
            except RuntimeError as error:
                raise self.watchdog.find_cause(
                    ChannelError(f"rank {self.rank}: {edge}: was not opened ({gloo_reason(error)})")
                ) from error

        self._hosts = {peer: self._store.get(f"host/{peer}").decode() for peer in self._peers}
        self._peer_threads = [
            threading.Thread(target=self._watch_peer, args=(peer,), name=f"rank {peer}", daemon=True)
            for peer in self._peers
        ]
        for thread in self._peer_threads:
            thread.start()

    def _warm_up_nccl(self, group: dist.ProcessGroup, peer: int, device: torch.device, *, sends: bool) -> None:
        """Send one number along the edge. An all-reduce would not do: messages between two ranks have a communicator of
        their own, and the first receive would block this thread until the peer's first send, which may wait for ours.
        """
        number = torch.zeros(1, device=device)
        operation = dist.isend if sends else dist.irecv
        started(operation(number, peer, group=group)).wait()

    @property
    def _peers(self) -> set[int]:
        return {peer for _, peer in self._groups.values()}

    def _watch_peer(self, peer: int) -> None:
        """Notice that ``peer`` dies: gloo does not, on the socket of a message of which it has received a half."""
        try:
            started(dist.irecv(torch.empty(1), peer, tag=_GOODBYE)).wait(timedelta(days=365))
        except RuntimeError as error:
            time.sleep(LOSS_GRACE)
            self.watchdog.lose(f"lost rank {peer}{self._silence(peer) if is_silence(error) else ''}")

    def _silence(self, peer: int) -> str:
        """Reason why ``peer`` is lost, where its connection ended because nothing answered."""
        return f" (no answer from {self._hosts[peer]} for {SILENCE:g} s: the machine is down, or the link to it)"

    def sender(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> RemoteSender:
        return self._opened(RemoteSender(self._endpoint(edge, layouts)))

    def receiver(
        self, edge: Edge, layouts: Callable[[Tag], MessageLayout], depth: int, tags: Iterator[Tag]
    ) -> RemoteReceiver:
        return self._opened(RemoteReceiver(self._endpoint(edge, layouts), depth, tags))

    def _opened(self, channel: Channel) -> Channel:
        self._channels.append(channel)
        return channel

    def _endpoint(self, edge: Edge, layouts: Callable[[Tag], MessageLayout]) -> P2PEndpoint:
        group, peer = self._groups[edge]
        return P2PEndpoint(edge, self.rank, peer, layouts, self._buffers, self.watchdog, group)

    def all_gather(self, value: Any, purpose: str) -> list[Any]:
        """Every rank's ``value`` in rank order, on every rank. A barrier.

        Raises:
            ChannelError: A rank is lost; the text names ``purpose``, which must be unique in the run.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._collective(f"all gather {purpose}"):
            dist.all_gather_object(values, value)
        return values

    def gather(self, value: Any, purpose: str) -> list[Any] | None:
        """Every rank's ``value`` in rank order, on rank 0; None on the other ranks. All ranks must call it.

        Raises:
            ChannelError: A rank is lost; the text names ``purpose``, which must be unique in the run.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._collective(f"gather {purpose}"):
            dist.gather_object(value, values)
        return values

    @contextlib.contextmanager
    def _collective(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            explanation = self.watchdog.explain() if "imed out" in str(error) else ""
            raise self.watchdog.find_cause(
                ChannelError(f"rank {self.rank}: lost a rank while {what}{explanation} ({gloo_reason(error)})")
            ) from error

    def send_report(self, text: str) -> None:
        """Leave a report for rank 0, on any thread; does not wait for rank 0."""
        with self._reporting:
            # The control thread notices as well, and ends the run: any thread may be the wrong one to raise on.
            with contextlib.suppress(ChannelError):
                self._store.set(f"report/{self.rank}/{self.reports_sent}", text)
            self.reports_sent += 1

    def poll_report(self, rank: int, i: int) -> str | None:
        """Take report ``i`` of ``rank`` if it is there; can be taken once."""
        key = f"report/{rank}/{i}"
        if not self._store.has(key):
            return None
        text = self._store.get(key).decode()
        self._store.delete(key)
        return text

    def publish(self, key: str, text: str) -> None:
        """Leave ``text`` for `await_published` of all ranks, on any thread."""
        self._store.set(f"published/{key}", text)

    def await_published(self, key: str, check: Callable[[], None]) -> str:
        """Wait for what a rank publishes as ``key``, on any thread; ``check`` may raise meanwhile.

        Raises:
            ChannelError: It did not come in time, or a rank is lost.
        """
        what, start = f"rank {self.rank}: waiting for {key}", time.monotonic()
        while not self._store.await_key(f"published/{key}", time.monotonic() + _CHECK_INTERVAL):
            check()
            self.watchdog.check(what)
            if time.monotonic() > start + self.watchdog.timeout:
                raise self.watchdog.timed_out(what)
        return self._store.get(f"published/{key}").decode()

    def file_transfer(self) -> FileTransfer:
        """Transfer of files between rank 0 and the others, on a connection of its own, for one thread."""
        return FileTransfer(self._store.another_connection(), self.watchdog)

    # -- what recovery.recoverable overrides

    restart_count = 0
    """Processes that were this rank before."""
    run_is_over = False
    """True if a process that was this rank before has come to the end of the run."""

    def keep_replay_from(self, first: Callable[[int, Edge], Tag | None]) -> None:
        """Note what a rank that restarts after so many batches receives first: ``first(batches, edge)``."""

    def announce_checkpoint(self, batches: int) -> None:
        """Announce that a checkpoint after ``batches`` batches is complete."""

    def close(self) -> None:
        """Leave all groups; `connect` may then be called again in this process."""
        if self._control is not None:
            self._control.close()
        if self.size > 1:
            for peer in self._peers:
                dist.send(torch.empty(1), peer, tag=_GOODBYE)
            for thread in self._peer_threads:
                thread.join(self.watchdog.timeout)
            # Their sockets stay open as long as something refers to a group.
            self._groups.clear()
            self._channels.clear()
            dist.destroy_process_group()


def connect(
    store: Store | None,
    rank: int,
    size: int,
    *,
    timeout: float,
    on_stop: Callable[[int], None] = lambda signal: None,
) -> Communicator:
    """Meet the other ranks of a run.

    Args:
        store: Store of `rendezvous`; None for a single process.
        rank: This process.
        size: Number of ranks.
        timeout: Limit of every wait, in seconds.
        on_stop: Called once with the signal that stops the run, on any thread.

    Raises:
        ChannelError: A rank did not come within ``timeout``, or the store does not answer.
    """
    watchdog = Watchdog(timeout)
    if store is None or size == 1:
        return Communicator(LauncherStore(HashStore(), rank), size, watchdog, on_stop)
    launcher = LauncherStore(store, rank)
    attempt = join(launcher, size, timeout)
    own = launcher.with_prefix(attempt)
    own.set(f"host/{rank}", socket.gethostname())
    try:
        with keeping_alive():
            dist.init_process_group(
                "gloo",
                store=PrefixStore(f"{attempt}/gloo", store),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
    except RuntimeError as error:
        raise launcher.cause(
            ChannelError(f"rank {rank}: the {size} ranks did not meet within {timeout:g} s: {gloo_reason(error)}")
        ) from error
    return Communicator(own, size, watchdog, on_stop)
