"""Rendezvous, groups, and what ranks tell each other outside the two streams."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.topology import Edge, Stream, Topology
from counterflow.transport import Communicator, connect, rendezvous
from tests.helpers.links import joined, until
from tests.helpers.processes import Pool


@pytest.fixture
def alone() -> Communicator:
    return connect(None, 0, 1, timeout=1)


def test_one_process_needs_no_group(alone: Communicator) -> None:
    assert (alone.rank, alone.size, alone.watch.timeout) == (0, 1, 1)
    alone.open_edges(Topology(5, 1), "gloo", torch.device("cpu"))
    assert alone.gather({"a": 1}, "things") == [{"a": 1}]
    alone.close()
    assert not dist.is_initialized()


def test_notes_of_one_process(alone: Communicator) -> None:
    assert alone.collect(0, 0) is None
    alone.post("first")
    alone.post("second")
    assert alone.posted == 2
    assert alone.collect(0, 0) == "first"
    assert alone.collect(0, 0) is None  # taken once
    assert alone.collect(0, 1) == "second"


def test_rendezvous_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rendezvous(1) == (None, 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rendezvous(1) == (None, 0, 1)


def gather(rank: int, size: int, store_path: str) -> list[Any]:
    with joined(rank, size, store_path) as comm:
        first = comm.all_gather({"rank": rank, "text": "x" * 1000 * rank}, "first")
        second = comm.all_gather(rank if rank else None, "second")
        return [first, second, (comm.rank, comm.size)]


def test_gather_is_the_same_everywhere(pool: Pool) -> None:
    expected = [{"rank": r, "text": "x" * 1000 * r} for r in range(3)]
    assert pool.run(3, gather) == [[expected, [None, 1, 2], (rank, 3)] for rank in range(3)]


def notes(rank: int, size: int, store_path: str) -> list[str | None]:
    with joined(rank, size, store_path) as comm:
        if rank:
            for i in range(3):
                comm.send_report(f"note {i} of {rank}, größer")
            comm.all_gather(None, "posted")
            return []
        found = [comm.poll_report(9, 0)]
        comm.all_gather(None, "posted")
        for r in (2, 1):
            for i in range(3):
                found.append(comm.poll_report(r, i))
        found.append(comm.poll_report(1, 0))  # it has been taken
        return found


def test_notes_reach_rank_0_once(pool: Pool) -> None:
    expected = [f"note {i} of {rank}, größer" for rank in (2, 1) for i in range(3)]
    assert pool.run(3, notes)[0] == [None, *expected, None]


def nobody_waits(rank: int, size: int, store_path: str) -> None:
    """A note waits for no reader: rank 1 posts before rank 0 looks at anything."""
    with joined(rank, size, store_path) as comm:
        if rank == 1:
            comm.send_report("early")
            comm.send_report("ready")
        else:
            until(comm, 1, 1)
            assert comm.poll_report(1, 0) == "early"


def test_posting_does_not_wait(pool: Pool) -> None:
    pool.run(2, nobody_waits)


def groups(rank: int, size: int, store_path: str) -> dict[str, tuple[int, list[int]]]:
    """The other end, and the members of the group, of every edge that this rank has opened."""
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
