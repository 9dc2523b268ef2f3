"""Measurements of the edges between two ranks, over gloo, and the checks made of them."""

import json
from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.doctor.check import Status
from counterflow.doctor.link_benchmark import QUICK, ClockOffset, LinkStats, check_edge, check_wall_clocks, measure_link
from counterflow.topology import Topology
from counterflow.transport import connect
from tests.helpers.processes import Pool

STEADY = LinkStats(5e-5, 2e-4, 1e9, ClockOffset(0.0, 1e-4))


def link_stats(rank: int, size: int, store_path: str) -> dict[str, Any]:
    communicator = connect(dist.FileStore(store_path, size), rank, size, timeout=20)
    communicator.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    stats = measure_link(communicator, 0, QUICK)
    communicator.close()
    return stats.to_json()


def test_measurements_are_plausible(pool: Pool) -> None:
    results = pool.run(2, link_stats)
    for stats in map(LinkStats.from_json, json.loads(json.dumps(results))):
        assert 1e-6 < stats.median <= stats.late < 1
        assert 1e6 < stats.bandwidth < 1e12
        assert abs(stats.offset.seconds) <= stats.offset.error < 1  # both ranks read the same clock


@pytest.mark.parametrize(
    ("sent", "received", "status"),
    [
        (STEADY, STEADY, "ok"),
        (LinkStats(0.02, 0.03, 1e9, STEADY.offset), STEADY, "warn"),
        (STEADY, LinkStats(5e-5, 2e-4, 5e6, STEADY.offset), "warn"),
        # One late message. The source's own arrivals belong to the other edge.
        (LinkStats(5e-5, 0.5, 1.0, STEADY.offset), STEADY, "ok"),
    ],
)
def test_edges(sent: LinkStats, received: LinkStats, status: str) -> None:
    check = check_edge(3, 2, sent, received)
    assert (check.name, check.status) == ("edge 3->2", status)


def test_the_offset_of_one_round_trip() -> None:
    """Sent at 10, received at 12 by this clock; the other one is 5 s ahead and answers at once, or late."""
    for remote in (15.0, 17.0):
        offset = ClockOffset.from_round_trip(10.0, 12.0, remote)
        assert abs(offset.seconds - 5.0) <= offset.error == 1.0


def test_wall_clocks_that_are_apart() -> None:
    assert check_wall_clocks([ClockOffset(0.0, 0.001)]).status is Status.OK
    # Each step is small, but rank 2 is far from rank 0; rank 3 is back.
    check = check_wall_clocks([ClockOffset(-0.06, 0.001), ClockOffset(-0.06, 0.002), ClockOffset(0.1, 0.004)])
    assert check.status is Status.WARN
    assert check.result == "at most 120.000 ms apart (ranks 2 and 0), +- 3.000 ms"
