"""Groups of NCCL: how edges are opened, seen from torch.distributed, of which nothing runs here."""

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from counterflow.topology import Topology
from counterflow.transport import communicator
from counterflow.transport.communicator import Communicator
from counterflow.transport.control import Watchdog
from counterflow.transport.rendezvous import LauncherStore

TIMEOUT = 30.0


class Posted:
    """An operation that ends with the test, or at once."""

    def __init__(self, over: "threading.Event | None" = None) -> None:
        self.over = over

    def wait(self, timeout: timedelta | None = None) -> None:
        if self.over is not None:
            self.over.wait(TIMEOUT)


def opened(monkeypatch: pytest.MonkeyPatch, rank: int, backend: str) -> tuple[list[tuple[Any, ...]], list[timedelta]]:
    """Calls of ``rank`` of three in order, and the limits of its groups."""
    calls: list[tuple[Any, ...]] = []
    limits: list[timedelta] = []
    end = threading.Event()

    def new_group(ends: list[int], backend: str, timeout: timedelta) -> Any:
        limits.append(timeout)
        return dist.ProcessGroup(ends.index(rank), 2) if rank in ends else object()

    def operation(name: str) -> Any:
        def call(tensor: Tensor, peer: int | None = None, group: Any = None, tag: int = 0) -> Posted:
            if group is None:  # by which the peer says that it ends
                return Posted(end)
            calls.append((name, peer))
            return Posted()

        return call

    for name in ("isend", "irecv", "all_reduce"):
        monkeypatch.setattr(dist, name, operation(name))
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(communicator, "make_buffers", lambda *_: None)
    store = LauncherStore(HashStore(), rank)
    for peer in range(3):
        store.set(f"host/{peer}", "here")
    comm = Communicator(store, 1, Watchdog(TIMEOUT))
    comm.open_edges(Topology(3, 3), backend, torch.device("cpu"))
    end.set()
    return calls, limits


def test_an_edge_of_nccl_is_warmed_up_by_a_message_along_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An all-reduce builds another communicator than messages use, and the first receive would wait for the first send
    of a rank that may be waiting for ours."""
    edges = Topology(3, 3).remote_edges()
    assert len(edges) == 4
    for rank in range(3):
        calls, _ = opened(monkeypatch, rank, "nccl")
        expected = [
            ("isend", edge.destination.block - 1) if edge.source.block - 1 == rank else ("irecv", edge.source.block - 1)
            for edge in edges
            if rank in (edge.source.block - 1, edge.destination.block - 1)
        ]
        assert calls == expected


def test_a_posted_receive_of_nccl_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's watchdog ends the process for a receive that was posted longer ago than its group's limit."""
    assert min(opened(monkeypatch, 1, "nccl")[1]) > timedelta(days=30)
    assert opened(monkeypatch, 1, "gloo")[1] == 4 * [timedelta(seconds=TIMEOUT)]


def test_gloo_is_warmed_up_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _ = opened(monkeypatch, 1, "gloo")
    assert [name for name, _ in calls] == 4 * ["all_reduce"]
