"""Diagnostics of several ranks, over gloo; some die, or are silent."""

import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch.distributed as dist

from counterflow.doctor import diagnostics
from counterflow.doctor.check import Status
from counterflow.doctor.diagnostics import DiagnosticsConfig, check_meeting, run_diagnostics
from counterflow.doctor.link_benchmark import QUICK
from counterflow.measured_links import read_links
from counterflow.rank_info import RankInfo
from counterflow.transport import Communicator, connect
from tests.helpers.processes import Pool, run_fresh


def diagnose(rank: int, size: int, store_path: str, seconds: float, folder: str) -> list[dict[str, Any]]:
    communicators = []

    def connect_ranks() -> Communicator:
        communicators.append(connect(dist.FileStore(store_path, size), rank, size, timeout=20))
        return communicators[0]

    messages = dist.FileStore(f"{store_path}-messages", size)
    links = Path(folder) / "links.json"
    config = DiagnosticsConfig(Path(folder), QUICK, 20, time.monotonic() + seconds, links)
    # Two nodes, so that both ranks check theirs.
    checks = run_diagnostics(messages, connect_ranks, RankInfo(rank, size, 0, 1, f"host{rank}"), config)
    communicators[0].close()
    return [asdict(check) for check in checks]


def test_two_ranks_on_two_nodes(pool: Pool, tmp_path: Path) -> None:
    table, nothing = pool.run(2, diagnose, 30, str(tmp_path))
    assert nothing == []
    lines = {check["name"]: check for check in table}
    names = {"versions", "host0 cores", "host1 cores", "meeting", "edge 0->1", "edge 1->0", "wall clocks"}
    assert names <= lines.keys()
    for name in ("versions", "meeting", "wall clocks"):
        assert lines[name]["status"] == "ok"
    assert re.fullmatch(
        r"64 B take \d+ us \(median\), \d+ us \(99th .*\); 1 MiB at [\d.]+ GB/s", lines["edge 1->0"]["result"]
    )
    there, back = read_links(tmp_path / "links.json")
    assert (there.source_node, there.destination_node, back.source_node, back.destination_node) == (0, 1, 1, 0)


def test_no_time_left(pool: Pool, tmp_path: Path) -> None:
    table, _ = pool.run(2, diagnose, -1, str(tmp_path))
    *_, edges, links = table
    assert edges["name"] == "edges"
    assert (edges["status"], edges["result"]) == ("warn", "0 of 1 pairs of neighbours were measured in time")
    assert (links["name"], links["status"]) == ("links", "warn")
    assert not (tmp_path / "links.json").exists()


def print_checks(rank: int, size: int, store_path: str, timeout: float, patience: float) -> NoReturn:
    """Diagnose without checks of the node, print the results to stderr, and end the process.

    Args:
        rank: This rank.
        size: Number of ranks.
        store_path: File of the store.
        timeout: Seconds that ranks wait for each other before they have connected.
        patience: The same, afterwards.
    """
    diagnostics.check_machine = lambda *_: []
    messages = dist.FileStore(f"{store_path}-messages", size)
    config = DiagnosticsConfig(Path(), QUICK, patience, time.monotonic() + 30)

    def connect_ranks() -> Communicator:
        communicator = connect(dist.FileStore(store_path, size), rank, size, timeout=timeout)
        communicator.watchdog.timeout = patience
        return communicator

    for check in run_diagnostics(messages, connect_ranks, RankInfo(rank, size, rank, size), config):
        print(check.status, check.name, check.result, file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)


def diagnose_with_a_lost_rank(rank: int, size: int, store_path: str, dies: bool) -> None:
    """The last rank ends, or is silent, when its edge is to be measured."""
    if rank == size - 1:
        diagnostics._measure = lambda *_: os._exit(0) if dies else time.sleep(8)
    print_checks(rank, size, store_path, 20, 3.0)


@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_or_silent(dies: bool) -> None:
    ended = run_fresh(3, diagnose_with_a_lost_rank, dies, timeout=25)
    lines = [line for line in ended[0].stderr.splitlines() if line.startswith(("ok", "warn", "fail"))]
    assert len([line for line in lines if "edge 0->1" in line or "edge 1->0" in line]) == 2, lines
    (broken,) = (line for line in lines if line.startswith("fail"))
    assert broken.startswith("fail edge 1<->2 latency: rank 1: edge ")
    assert "rank 2 did not answer" in broken


def diagnose_alone(rank: int, size: int, store_path: str) -> None:
    """Rank 0 of two, without the other one."""
    print_checks(0, 2, store_path, 1.0, 1.0)


def test_a_rank_that_never_comes() -> None:
    (ended,) = run_fresh(1, diagnose_alone, timeout=20)
    assert ended.status == 0
    assert "fail rank 1 did not report" in ended.stderr
    assert "fail meeting 0 of 2 ranks met: rank 0: " in ended.stderr


def test_meeting() -> None:
    assert check_meeting(2, {0: "", 1: ""}).status is Status.OK
    assert check_meeting(2, {0: ""}).result == "1 of 2 ranks met"
    assert check_meeting(3, {0: "late", 1: "", 2: "late"}).result == "1 of 3 ranks met: rank 0, 2: late"
    check = check_meeting(2, {0: "timed out", 1: ""})
    assert (check.status, check.result) == (Status.FAIL, "1 of 2 ranks met: rank 0: timed out")
