"""Versions, backends and the table."""

import sys

import pytest

from counterflow.doctor import software
from counterflow.doctor.check import Check, Status, table, verdict

SAME = {"Python": "3.11.7", "torch": "2.15.0", "torchvision": "0.29.2"}


def test_equal_versions() -> None:
    check = software.same_versions({0: SAME, 1: SAME})
    assert check == Check("versions", Status.OK, "Python 3.11.7, torch 2.15.0, torchvision 0.29.2 on all 2 ranks")


def test_one_rank_has_another_torch() -> None:
    check = software.same_versions({0: SAME, 1: {**SAME, "torch": "2.11.0"}, 2: SAME})
    assert check.status is Status.FAIL
    assert check.found == "torch 2.15.0 on rank 0, 2; 2.11.0 on rank 1"
    assert check.advice


def test_every_difference_is_named() -> None:
    check = software.same_versions({0: SAME, 3: {"Python": "3.12.1", "torch": "2.15.0"}})
    assert check.found == "Python 3.11.7 on rank 0; 3.12.1 on rank 3 / torchvision 0.29.2 on rank 0; none on rank 3"


def test_the_versions_of_this_process() -> None:
    assert software.versions().keys() == SAME.keys()
    assert software.same_versions({0: software.versions()}).status is Status.OK
    assert software.torchvision_loads().status is Status.OK


def test_a_torchvision_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    check = software.torchvision_loads()
    assert check.status is Status.FAIL
    assert check.found.startswith("does not load: ")


def test_what_torch_was_built_with() -> None:
    settings = "Build settings: USE_CUDA=0, USE_GLOO=ON, USE_NCCL=OFF, USE_MPI="
    assert software.built_with("gloo", settings)
    assert not software.built_with("nccl", settings)
    assert not software.built_with("mpi", settings)
    assert software.built_with("gloo", "settings of another form")
    assert software.gloo(settings).status is Status.OK
    assert software.gloo("USE_GLOO=OFF").status is Status.FAIL


@pytest.mark.parametrize(
    ("use", "devices", "ranks", "status"),
    [("ON", 0, 4, "ok"), ("OFF", 0, 4, "ok"), ("ON", 4, 4, "ok"), ("ON", 1, 2, "warn"), ("OFF", 2, 2, "warn")],
)
def test_gpus_against_ranks(use: str, devices: int, ranks: int, status: str) -> None:
    check = software.nccl(f"USE_NCCL={use}", devices, ranks)
    assert check.status == status
    assert ("two ranks on one GPU" in check.advice) == (0 < devices < ranks)


def test_one_line_a_check() -> None:
    checks = [Check("a", Status.OK, "fine"), Check("longer", Status.WARN, "little", "take more")]
    assert table(checks) == "ok    a       fine\nwarn  longer  little -> take more"
    assert verdict(checks) == "2 checks: 1 ok, 1 warn, 0 fail"
    assert table([]) == ""


@pytest.mark.parametrize(("status", "advice"), [(Status.OK, "do"), (Status.WARN, ""), (Status.FAIL, "")])
def test_advice_is_for_what_is_not_ok(status: Status, advice: str) -> None:
    with pytest.raises(AssertionError):
        Check("a", status, "found", advice)
