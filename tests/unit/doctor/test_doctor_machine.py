"""Checks of one node, with faults put in."""

import math
import os
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from counterflow.doctor import machine
from counterflow.doctor.check import Check, Status
from counterflow.rank_info import RankInfo

Usage = namedtuple("Usage", "total used free")
SAME = {"Python": "3.11.7", "torch": "2.15.0", "torchvision": "0.29.2"}


def test_equal_versions() -> None:
    check = machine.compare_versions({0: SAME, 1: SAME})
    assert check == Check("versions", Status.OK, "Python 3.11.7, torch 2.15.0, torchvision 0.29.2 on all 2 ranks")


def test_one_rank_has_another_torch() -> None:
    check = machine.compare_versions({0: SAME, 1: {**SAME, "torch": "2.11.0"}, 2: SAME})
    assert check.status is Status.FAIL
    assert check.result == "torch 2.15.0 on rank 0, 2; 2.11.0 on rank 1"
    assert check.advice


def test_every_difference_is_named() -> None:
    check = machine.compare_versions({0: SAME, 3: {"Python": "3.12.1", "torch": "2.15.0"}})
    assert check.result == "Python 3.11.7 on rank 0; 3.12.1 on rank 3 / torchvision 0.29.2 on rank 0; none on rank 3"


def test_the_versions_of_this_process() -> None:
    assert machine.installed_versions().keys() == SAME.keys()
    assert machine.compare_versions({0: machine.installed_versions()}).status is Status.OK
    assert machine.check_torchvision().status is Status.OK


def test_a_torchvision_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check = machine.check_torchvision()
    assert check.status is Status.FAIL
    assert check.result.startswith("does not load: ")


def test_build_options_of_torch() -> None:
    settings = "Build settings: USE_CUDA=0, USE_GLOO=ON, USE_NCCL=OFF, USE_MPI="
    assert machine.built_with("gloo", settings)
    assert not machine.built_with("nccl", settings)
    assert not machine.built_with("mpi", settings)
    assert machine.built_with("gloo", "settings of another form")
    assert machine.check_gloo(settings).status is Status.OK
    assert machine.check_gloo("USE_GLOO=OFF").status is Status.FAIL


@pytest.mark.parametrize(
    ("use", "devices", "ranks", "status"),
    [("ON", 0, 4, "ok"), ("OFF", 0, 4, "ok"), ("ON", 4, 4, "ok"), ("ON", 1, 2, "warn"), ("OFF", 2, 2, "warn")],
)
def test_gpus_against_ranks(use: str, devices: int, ranks: int, status: str) -> None:
    check = machine.check_nccl(f"USE_NCCL={use}", devices, ranks)
    assert check.status == status
    assert ("two ranks on one GPU" in check.advice) == (0 < devices < ranks)


@pytest.mark.parametrize(("cores", "ranks", "status"), [(4, 4, "ok"), (8, 2, "ok"), (2, 4, "warn")])
def test_cores(cores: int, ranks: int, status: str) -> None:
    assert machine.check_cores(cores, ranks).status == status


@pytest.mark.parametrize(
    ("setting", "status"), [(None, "ok"), ("1", "ok"), ("2", "ok"), ("3", "warn"), ("0", "warn"), ("many", "warn")]
)
def test_threads(setting: str | None, status: str) -> None:
    check = machine.check_threads(setting, cores=4, local_ranks=2)
    assert check.status == status
    assert not check.advice or check.advice == "OMP_NUM_THREADS=2"


def test_memory() -> None:
    assert machine.check_memory(4 * 10**9, 4).status is Status.OK
    assert machine.check_memory(3 * 10**9, 4).status is Status.WARN


def test_memory_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  24684084 kB\nMemAvailable:  1000 kB\nHugePages_Total:  0\n")
    assert machine.available_memory(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.current").write_text("400\n")
    for limit, expected in (("max", 1_024_000), ("1000", 600), ("300", 0), ("99999999999", 1_024_000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert machine.available_memory(meminfo, tmp_path) == expected


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_shared_memory(Path("/no/such/folder")).status is Status.WARN
    for free, status in ((64 * 2**20, "warn"), (65 * 2**20, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(2**30, 0, free))
        assert machine.check_shared_memory().status == status


def test_the_run_folder_is_not_made(tmp_path: Path) -> None:
    check = machine.check_run_dir(tmp_path / "runs" / "inner")
    assert "to be made in" in check.result
    assert machine.check_run_dir(tmp_path).result.startswith(f"{tmp_path}: ")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "inner"):
        check = machine.check_run_dir(folder)
        assert check.status is Status.WARN
        assert "not writable: a file is in its place" in check.result


def test_a_folder_that_refuses_files(tmp_path: Path) -> None:
    check = machine.check_run_dir(Path("/proc/self"))
    assert check.status is Status.WARN
    assert "not writable" in check.result


def test_a_slow_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.12))
    assert machine.check_run_dir(tmp_path).status is Status.WARN


def test_a_disk_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(1))
    monkeypatch.setattr(machine, "_DISK_TIMEOUT", 0.2)
    assert "nothing within 0.2 s" in machine.check_run_dir(tmp_path).result


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**8))
    assert "make room" in machine.check_run_dir(tmp_path).advice


def test_clock_resolution() -> None:
    assert machine.check_clock().status is Status.OK
    assert machine.check_clock(lambda: math.floor(time.monotonic() * 50) / 50).status is Status.WARN
    assert "stands still" in machine.check_clock(lambda: 1.0).result


def test_all_checks_of_a_node(tmp_path: Path) -> None:
    """Every check has a line of its own, and none fails on a healthy machine."""
    checks = machine.check_machine(RankInfo(0, 1, 0, 1), tmp_path)
    names = [check.name for check in checks]
    assert len(names) == len(set(names)) == 12
    assert not [check for check in checks if check.status is Status.FAIL]
