"""Groups of the edges, and messages outside the two streams."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.recovery.recoverable import connect_recoverable
from counterflow.recovery.supervisor import SupervisedRank
from counterflow.topology import Edge, Stream, Topology
from counterflow.transport import Communicator, connect
from tests.helpers.links import joined, until
from tests.helpers.processes import Pool


@pytest.fixture
def alone() -> Communicator:
    return connect(None, 0, 1, timeout=1)


def test_one_process_needs_no_group(alone: Communicator) -> None:
    assert (alone.rank, alone.size, alone.watchdog.timeout) == (0, 1, 1)
    alone.open_edges(Topology(5, 1), "gloo", torch.device("cpu"))
    assert alone.all_gather({"a": 1}, "things") == [{"a": 1}]
    assert alone.gather({"a": 1}, "things on rank 0") == [{"a": 1}]
    alone.close()
    assert not dist.is_initialized()


def test_reports_of_one_process(alone: Communicator) -> None:
    assert alone.poll_report(0, 0) is None
    alone.send_report("first")
    alone.send_report("second")
    assert alone.reports_sent == 2
    assert alone.poll_report(0, 0) == "first"
    assert alone.poll_report(0, 0) is None  # taken once
    assert alone.poll_report(0, 1) == "second"


def all_gather(rank: int, size: int, store_path: str) -> list[Any]:
    with joined(rank, size, store_path) as comm:
        first = comm.all_gather({"rank": rank, "text": "x" * 1000 * rank}, "first")
        second = comm.all_gather(rank if rank else None, "second")
        return [first, second, (comm.rank, comm.size)]


def test_all_gather_is_the_same_everywhere(pool: Pool) -> None:
    expected = [{"rank": r, "text": "x" * 1000 * r} for r in range(3)]
    assert pool.run(3, all_gather) == [[expected, [None, 1, 2], (rank, 3)] for rank in range(3)]


def reports(rank: int, size: int, store_path: str) -> list[str | None]:
    with joined(rank, size, store_path) as comm:
        if rank:
            for i in range(3):
                comm.send_report(f"report {i} of {rank}, größer")
            comm.all_gather(None, "posted")
            return []
        found = [comm.poll_report(9, 0)]
        comm.all_gather(None, "posted")
        for r in (2, 1):
            for i in range(3):
                found.append(comm.poll_report(r, i))
        found.append(comm.poll_report(1, 0))  # it has been taken
        return found


def test_reports_reach_rank_0_once(pool: Pool) -> None:
    expected = [f"report {i} of {rank}, größer" for rank in (2, 1) for i in range(3)]
    assert pool.run(3, reports)[0] == [None, *expected, None]


def early_reports(rank: int, size: int, store_path: str) -> None:
    """Rank 1 sends a report before rank 0 looks for any."""
    with joined(rank, size, store_path) as comm:
        if rank == 1:
            comm.send_report("early")
            comm.send_report("ready")
        else:
            until(comm, 1, 1)
            assert comm.poll_report(1, 0) == "early"


def test_sending_a_report_does_not_wait(pool: Pool) -> None:
    pool.run(2, early_reports)


BIG = 20_000_000
"""Bytes; torch's TCPStore refuses values above 8 MB."""


def state(rank: int) -> dict[str, torch.Tensor]:
    """State dict of 20 MB; another one of a few bytes on rank 1."""
    size = BIG // 4 if rank != 1 else 3
    return {"weight": torch.arange(size, dtype=torch.float32) + rank, "steps": torch.tensor(rank)}


def check_gather(comm: Communicator) -> None:
    """Gather state dicts to rank 0, block by block, and then something small on all ranks."""
    for block in range(2):
        states = comm.gather(state(comm.rank) if block == 0 else comm.rank or None, f"block {block}")
        if comm.rank:
            assert states is None
        elif block == 1:
            assert states == [None, 1, 2][: comm.size]
        else:
            assert states is not None
            assert len(states) == comm.size
            for rank, found in enumerate(states):
                expected = state(rank)
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert comm.all_gather(comm.rank, "small") == list(range(comm.size))


def gather_over_gloo(rank: int, size: int, store_path: str) -> None:
    with joined(rank, size, store_path) as comm:
        check_gather(comm)


def gather_through_the_store(rank: int, size: int, store_path: str, port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    supervised = SupervisedRank(0, None, lambda attempt: None)
    comm = connect_recoverable(
        store, size, supervised, rank=rank, timeout=30, on_stop=lambda signal: None, replay_bytes=0
    )
    check_gather(comm)
    if rank == 0:  # a process that replaces rank 0 finds the same values
        assert comm.gather(state(0), "block 0") is not None
    comm.close()


def test_rank_0_alone_gathers_large_values(pool: Pool) -> None:
    pool.run(3, gather_over_gloo)


def test_rank_0_alone_gathers_large_values_through_the_store(pool: Pool) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pool.run(3, gather_through_the_store, store.port)


def groups(rank: int, size: int, store_path: str) -> dict[str, tuple[int, list[int]]]:
    """Peer, and members of the group, of every edge that this rank has opened."""
    with joined(rank, size, store_path) as comm:
        found = {}
        for edge, (group, peer) in comm._groups.items():
            found[str(edge)] = (peer, dist.get_process_group_ranks(group))
        assert len({id(group) for group, _ in comm._groups.values()}) == len(comm._groups)
        return found


def test_every_directed_edge_has_a_group_of_its_two_ends(pool: Pool) -> None:
    edges = [Edge(stream, lower) for lower in (1, 2) for stream in (Stream.ACTIVATION, Stream.TARGET)]
    expected: list[dict[str, tuple[int, list[int]]]] = [{}, {}, {}]
    for edge in edges:
        low, high = edge.lower - 1, edge.lower
        expected[low][str(edge)] = (high, [low, high])
        expected[high][str(edge)] = (low, [low, high])
    assert pool.run(3, groups) == expected
