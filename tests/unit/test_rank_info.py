"""Rank of a process, read from the launcher's environment."""

import socket
import subprocess
import sys

import pytest

from counterflow.rank_info import RankInfo

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_under_torchrun() -> None:
    info = RankInfo.from_env(TORCHRUN)
    assert info == RankInfo(5, 8, 1, 4, socket.gethostname(), 2, "job", ("192.0.2.1", 29500), True)
    assert (info.is_main, info.one_node) == (False, False)


def test_by_hand() -> None:
    info = RankInfo.from_env(BY_HAND)
    assert info == RankInfo(1, 2, 0, 2, master=("127.0.0.1", 29500))
    assert info.one_node
    assert not info.is_main
    elsewhere = RankInfo.from_env({**BY_HAND, "MASTER_ADDR": "192.0.2.1"})
    assert elsewhere.local_size == 1
    assert not elsewhere.one_node


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "many"}])
def test_a_single_process_needs_no_other_variable(environment: dict[str, str]) -> None:
    info = RankInfo.from_env(environment)
    assert info == RankInfo()
    assert info.is_main
    assert info.one_node


def test_torchrun_may_restart_a_single_process() -> None:
    info = RankInfo.from_env({"WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "3", "TORCHELASTIC_RUN_ID": "job"})
    assert (info.size, info.restart_count, info.run_id) == (1, 3, "job")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WORLD_SIZE", "many", "WORLD_SIZE=many: must be a whole number"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0: must be between 1 and 2147483647"),
        ("RANK", "8", "RANK=8: must be between 0 and 7"),
        ("RANK", "-1", "RANK=-1: must be a whole number"),
        ("RANK", "", "RANK: must be set for WORLD_SIZE=8 processes to meet"),
        ("LOCAL_WORLD_SIZE", "9", "LOCAL_WORLD_SIZE=9: must be between 1 and 8"),
        ("LOCAL_RANK", "4", "LOCAL_RANK=4: must be between 0 and 3"),
        ("MASTER_ADDR", "", "MASTER_ADDR: must be set for WORLD_SIZE=8 processes to meet"),
        ("MASTER_PORT", "65536", "MASTER_PORT=65536: must be between 1 and 65535"),
        ("MASTER_PORT", "\u0665", "MASTER_PORT=\u0665: must be a whole number"),
        ("TORCHELASTIC_RESTART_COUNT", "once", "TORCHELASTIC_RESTART_COUNT=once: must be a whole number"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(name: str, value: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        RankInfo.from_env({**TORCHRUN, name: value})
    assert str(caught.value) == text


def test_it_loads_no_torch() -> None:
    code = "import sys, counterflow.rank_info; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
