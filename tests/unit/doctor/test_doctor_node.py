"""What the processes of a node share, with faults put in."""

import math
import os
import shutil
import socket
import time
from collections import namedtuple
from pathlib import Path

import pytest

from counterflow.doctor import clock, cores, network, node, storage
from counterflow.doctor.bounded import bounded
from counterflow.doctor.check import Status
from counterflow.doctor.clock import Offset
from counterflow.doctor.network import Resolution
from counterflow.doctor.place import Place

Usage = namedtuple("Usage", "total used free")
INTERFACES = {"lo": "127.0.0.1", "eth0": "192.0.2.2"}


def test_a_call_that_does_not_return() -> None:
    assert bounded(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(5, lambda: 1 // 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        bounded(0.05, lambda: time.sleep(2))
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(("usable", "ranks", "status"), [(4, 4, "ok"), (8, 2, "ok"), (2, 4, "warn")])
def test_cores(usable: int, ranks: int, status: str) -> None:
    assert cores.cores(usable, ranks).status == status


@pytest.mark.parametrize(
    ("setting", "status"), [(None, "ok"), ("1", "ok"), ("2", "ok"), ("3", "warn"), ("0", "warn"), ("many", "warn")]
)
def test_threads(setting: str | None, status: str) -> None:
    check = cores.threads(setting, usable=4, local_ranks=2)
    assert check.status == status
    assert not check.advice or check.advice == "OMP_NUM_THREADS=2"


def test_memory() -> None:
    assert cores.memory(4 * 10**9, 4).status is Status.OK
    assert cores.memory(3 * 10**9, 4).status is Status.WARN


def test_memory_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  24684084 kB\nMemAvailable:  1000 kB\nHugePages_Total:  0\n")
    assert cores.available_memory(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.current").write_text("400\n")
    for limit, expected in (("max", 1_024_000), ("1000", 600), ("300", 0), ("99999999999", 1_024_000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert cores.available_memory(meminfo, tmp_path) == expected


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = network.resolve("nowhere")
    check = network.host_name(found)
    assert (found.address, check.status) == (None, Status.WARN)
    assert "nowhere does not resolve: Name or service not known" in check.found
    assert "--local-addr" in check.advice


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(2))
    monkeypatch.setattr(network, "_PATIENCE", 0.1)
    found = network.resolve("far")
    assert found.address is None
    assert found.seconds < 1.5
    assert "nothing within 0.1 s" in network.host_name(found).found


def test_a_slow_name() -> None:
    assert network.host_name(Resolution("vm", "127.0.0.1", 0.01)).status is Status.OK
    assert network.host_name(Resolution("vm", "127.0.0.1", 1.5)).status is Status.WARN


def test_the_interface_of_gloo() -> None:
    assert network.gloo_address("eth0", None, INTERFACES) == ("GLOO_SOCKET_IFNAME=eth0", "192.0.2.2")
    assert network.gloo_address("lo,eth0", None, INTERFACES)[1] == "127.0.0.1"
    assert network.gloo_address("", "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    for missing in ("eth7", "eth0,eth7"):
        assert network.gloo_address(missing, "127.0.0.1", INTERFACES)[1] is None
    assert network.gloo_address(None, "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    assert network.gloo_address(None, None, INTERFACES)[1] == "127.0.0.1"
    assert network.gloo_address(None, "203.0.113.9", INTERFACES)[1] == "127.0.0.1"  # another machine's


def test_an_interface_that_others_reach() -> None:
    assert network.interface("a way", "127.0.0.1", True, INTERFACES).found == "gloo listens on 127.0.0.1 (lo), by a way"
    assert network.interface("a way", "192.0.2.2", False, INTERFACES).status is Status.OK
    unreachable = network.interface("a way", "127.0.1.1", False, INTERFACES)
    assert unreachable.status is Status.FAIL
    assert "GLOO_SOCKET_IFNAME" in unreachable.advice
    missing = network.interface("GLOO_SOCKET_IFNAME=eth7", None, True, INTERFACES)
    assert (missing.status, missing.advice) == (Status.FAIL, "one of lo (127.0.0.1), eth0 (192.0.2.2)")


def test_ports() -> None:
    assert network.port("127.0.0.1").status is Status.OK
    assert network.port("203.0.113.9").status is Status.FAIL  # no address of this machine
    assert "127.0.0.1" in network.interfaces().values()


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.shared_memory(Path("/no/such/folder")).status is Status.WARN
    for free, status in ((64 * 2**20, "warn"), (65 * 2**20, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(2**30, 0, free))
        assert storage.shared_memory().status == status


def test_the_run_folder_is_not_made(tmp_path: Path) -> None:
    check = storage.run_folder(tmp_path / "runs" / "inner")
    assert "to be made in" in check.found
    assert storage.run_folder(tmp_path).found.startswith(f"{tmp_path}: ")
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "inner"):
        check = storage.run_folder(folder)
        assert check.status is Status.WARN
        assert "not writable: a file is in its place" in check.found


def test_a_folder_that_refuses_files(tmp_path: Path) -> None:
    check = storage.run_folder(Path("/proc/self"))
    assert check.status is Status.WARN
    assert "not writable" in check.found


def test_a_slow_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.12))
    assert storage.run_folder(tmp_path).status is Status.WARN


def test_a_disk_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(1))
    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    assert "nothing within 0.2 s" in storage.run_folder(tmp_path).found


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**8))
    assert "make room" in storage.run_folder(tmp_path).advice


def test_ticks() -> None:
    assert clock.resolution().status is Status.OK
    assert clock.resolution(lambda: math.floor(time.monotonic() * 50) / 50).status is Status.WARN
    assert "stands still" in clock.resolution(lambda: 1.0).found


def test_the_answer_lies_between_question_and_answer() -> None:
    """Sent at 10, received at 12 by this clock; the other one is 5 s ahead and answers at once, or late."""
    for theirs in (15.0, 17.0):
        offset = Offset.cristian(10.0, 12.0, theirs)
        assert abs(offset.seconds - 5.0) <= offset.error == 1.0


def test_clocks_that_are_apart() -> None:
    assert clock.wall_clocks([Offset(0.0, 0.001)]).status is Status.OK
    # Each step is small, but rank 2 is far from rank 0; rank 3 is back.
    check = clock.wall_clocks([Offset(-0.06, 0.001), Offset(-0.06, 0.002), Offset(0.1, 0.004)])
    assert check.status is Status.WARN
    assert check.found == "at most 120.000 ms apart (ranks 2 and 0), +- 3.000 ms"


def test_a_place() -> None:
    assert Place.of({"WORLD_SIZE": "2"}) == Place(0, 2, 0, 2)
    place = Place.of({"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
    assert place == Place(5, 8, 1, 4)
    assert not place.one_node
    with pytest.raises(ValueError, match="WORLD_SIZE=many: must be a whole number"):
        Place.of({"WORLD_SIZE": "many"})


def test_all_of_a_node(tmp_path: Path) -> None:
    """Each check has a line, and none but that of cores and threads depends on how busy this machine is."""
    checks = node.look(Place(0, 1, 0, 1), tmp_path)
    names = [check.name for check in checks]
    assert len(names) == len(set(names)) == 12
    assert not [check for check in checks if check.status is Status.FAIL]
