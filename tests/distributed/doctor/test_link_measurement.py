"""Measurements of the edges between two ranks, over gloo."""

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from counterflow.doctor.link_benchmark import QUICK, LinkStats, measure_link
from counterflow.topology import Topology
from counterflow.transport import connect
from tests.helpers.processes import Pool


def link_stats(rank: int, size: int, store_path: str) -> dict[str, Any]:
    communicator = connect(dist.FileStore(store_path, size), rank, size, timeout=20)
    communicator.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    stats = measure_link(communicator, 0, QUICK)
    communicator.close()
    return asdict(stats)


def test_measurements_are_plausible(pool: Pool) -> None:
    results = pool.run(2, link_stats)
    for stats in map(LinkStats.from_json, json.loads(json.dumps(results))):
        assert 1e-6 < stats.median <= stats.late < 1
        assert 1e6 < stats.bandwidth < 1e12
        assert abs(stats.offset.seconds) <= stats.offset.error < 1  # both ranks read the same clock
