"""Ranks that measure their edges, over gloo; some die, or say nothing."""

import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.doctor import edges, examination
from counterflow.doctor.check import Status
from counterflow.doctor.clock import Offset
from counterflow.doctor.examination import Plan, examine, meeting
from counterflow.doctor.notes import Notes
from counterflow.doctor.pingpong import QUICK, Measured, measure
from counterflow.doctor.place import Place
from counterflow.topology import Topology
from counterflow.transport import Communicator, connect
from tests.helpers.processes import Pool, run_fresh

STEADY = Measured(5e-5, 2e-4, 1e9, Offset(0.0, 1e-4))


def measured(rank: int, size: int, store_path: str) -> dict[str, Any]:
    comm = connect(dist.FileStore(store_path, size), rank, size, timeout=20)
    comm.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    found = measure(comm, 0, QUICK)
    comm.close()
    return found.note()


def test_ping_pong(pool: Pool) -> None:
    notes = pool.run(2, measured)
    for found in map(Measured.read, json.loads(json.dumps(notes))):
        assert 1e-6 < found.median <= found.late < 1
        assert 1e6 < found.bandwidth < 1e12
        assert abs(found.ahead.seconds) <= found.ahead.error < 1  # one and the same clock


def examined(rank: int, size: int, store_path: str, seconds: float, folder: str) -> list[dict[str, Any]]:
    worlds = []

    def meet() -> Communicator:
        worlds.append(connect(dist.FileStore(store_path, size), rank, size, timeout=20))
        return worlds[0]

    notes = Notes(dist.FileStore(f"{store_path}-notes", size))
    plan = Plan(Path(folder), QUICK, 20, time.monotonic() + seconds)
    # Two nodes, so that both ranks look.
    checks = examine(notes, meet, Place(rank, size, 0, 1, f"host{rank}"), plan)
    worlds[0].close()
    return [asdict(check) for check in checks]


def test_two_ranks_on_two_nodes(pool: Pool, tmp_path: Path) -> None:
    table, nothing = pool.run(2, examined, 30, str(tmp_path))
    assert nothing == []
    lines = {check["name"]: check for check in table}
    assert {
        "versions",
        "host0 cores",
        "host1 cores",
        "meeting",
        "edge 0->1",
        "edge 1->0",
        "wall clocks",
    } <= lines.keys()
    for name in ("versions", "meeting", "wall clocks"):
        assert lines[name]["status"] == "ok"
    assert re.fullmatch(
        r"64 B take \d+ us \(median\), \d+ us \(99th .*\); 1 MiB at [\d.]+ GB/s", lines["edge 1->0"]["found"]
    )


def test_no_time_left(pool: Pool, tmp_path: Path) -> None:
    table, _ = pool.run(2, examined, -1, str(tmp_path))
    assert table[-1]["name"] == "edges"
    assert (table[-1]["status"], table[-1]["found"]) == ("warn", "0 of 1 pairs of neighbours were measured in time")


def unwell(rank: int, size: int, store_path: str, dies: bool) -> None:
    """The last rank ends, or does nothing, when its edge is to be measured."""
    waits = 3.0

    def meet() -> Communicator:
        comm = connect(dist.FileStore(store_path, size), rank, size, timeout=20)
        comm.watch.timeout = waits
        return comm

    if rank == size - 1:
        examination._measured = lambda *_: os._exit(0) if dies else time.sleep(8)
    notes = Notes(dist.FileStore(f"{store_path}-notes", size))
    plan = Plan(Path(), QUICK, waits, time.monotonic() + 30)
    examination.look = lambda *_: []
    for check in examine(notes, meet, Place(rank, size, rank, size), plan):
        print(check.status, check.name, check.found, file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)


@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_or_silent(dies: bool) -> None:
    ended = run_fresh(3, unwell, dies, timeout=25)
    lines = [line for line in ended[0].stderr.splitlines() if line.startswith(("ok", "warn", "fail"))]
    assert len([line for line in lines if "edge 0->1" in line or "edge 1->0" in line]) == 2, lines
    (broken,) = (line for line in lines if line.startswith("fail"))
    assert broken.startswith("fail edge 1<->2 latency: rank 1: edge ")
    assert "rank 2 says nothing" in broken


def alone(rank: int, size: int, store_path: str) -> None:
    """Rank 0 of two; nobody else comes."""
    notes = Notes(dist.FileStore(f"{store_path}-notes", 2))
    plan = Plan(Path(), QUICK, 1.0, time.monotonic() + 30)
    examination.look = lambda *_: []

    def meet() -> Communicator:
        return connect(dist.FileStore(store_path, 2), 0, 2, timeout=1.0)

    for check in examine(notes, meet, Place(0, 2, 0, 2), plan):
        print(check.status, check.name, check.found, file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)


def test_a_rank_that_never_comes() -> None:
    (ended,) = run_fresh(1, alone, timeout=20)
    assert ended.status == 0
    assert "fail rank 1 gave no sign of itself" in ended.stderr
    assert "fail meeting 0 of 2 ranks met: rank 0: " in ended.stderr


def test_who_has_met() -> None:
    assert meeting(2, {0: "", 1: ""}).status is Status.OK
    assert meeting(2, {0: ""}).found == "1 of 2 ranks met"
    assert meeting(3, {0: "late", 1: "", 2: "late"}).found == "1 of 3 ranks met: rank 0, 2: late"
    check = meeting(2, {0: "timed out", 1: ""})
    assert (check.status, check.found) == (Status.FAIL, "1 of 2 ranks met: rank 0: timed out")


@pytest.mark.parametrize(
    ("sent", "received", "status"),
    [
        (STEADY, STEADY, "ok"),
        (Measured(0.02, 0.03, 1e9, STEADY.ahead), STEADY, "warn"),
        (STEADY, Measured(5e-5, 2e-4, 5e6, STEADY.ahead), "warn"),
        (Measured(5e-5, 0.5, 1.0, STEADY.ahead), STEADY, "ok"),  # one late message; its own arrivals are the other edge
    ],
)
def test_edges(sent: Measured, received: Measured, status: str) -> None:
    check = edges.edge(3, 2, sent, received)
    assert (check.name, check.status) == ("edge 3->2", status)


def test_notes() -> None:
    class Store(dict[str, str]):
        def set(self, key: str, value: str) -> None:
            self[key] = value

        def check(self, keys: list[str]) -> bool:
            return all(key in self for key in keys)

        def get(self, key: str) -> bytes:
            return self[key].encode()

        def delete_key(self, key: str) -> bool:
            return self.pop(key, None) is not None

    notes = Notes(Store())
    notes.post("a/0", {"value": [1, "größer"]})
    notes.post("a/2", 0)
    start = time.monotonic()
    assert notes.take_all("a", [0, 1, 2], 0.05) == {0: {"value": [1, "größer"]}, 2: 0}
    assert notes.take("a/0", start) is None
    assert time.monotonic() - start < 2
