"""The program as a user starts it."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from counterflow.measured_links import read_links
from tests.helpers.launch import ROOT, Done, forked, start
from tests.helpers.ports import free_port
from tests.helpers.processes import by_hand, run_fresh, run_script

PROGRAM = str(ROOT / "launch" / "doctor.py")
PATIENT = ("--quick", "--timeout=30")
"""For ranks that meet late on a busy machine."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2")
LINES = {
    "versions", "torchvision", "gloo", "nccl", "cores", "threads", "memory", "host name", "interface", "port",
    "shared memory", "run folder", "clock", "listeners", "meeting", "edge 0->1", "edge 1->0", "wall clocks",
}  # fmt: skip


def statuses(done: Done) -> dict[str, str]:
    """Status of each line, by name. The table pads names to one width, with two spaces before the result."""
    rows = [re.split(r" {2,}", line) for line in done.stdout.splitlines()[:-1]]
    return {name: status for status, name, *_ in rows}


def as_rank(rank: int, ranks: int, store_path: str, port: int, cwd: str) -> None:
    os.chdir(cwd)
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ.update(by_hand(rank, ranks, port, **local))
    run_script(PROGRAM, [*PATIENT])


def forked_ranks(cwd: Path) -> Done:
    """Two ranks with the environment that a launcher gives."""
    ended = run_fresh(2, as_rank, free_port(), str(cwd), timeout=100)
    texts = ("".join(end.stdout for end in ended), "".join(end.stderr for end in ended))
    return Done([PROGRAM], max(end.status for end in ended), *texts)


@pytest.mark.parametrize(
    "launch",
    [
        pytest.param(lambda cwd: forked(PROGRAM, *PATIENT, cwd=cwd), id="alone"),
        pytest.param(forked_ranks, id="ranks"),
        pytest.param(lambda cwd: start(*TORCHRUN, PROGRAM, "--quick", cwd=cwd), id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_ranks(launch: Callable[[Path], Done], tmp_path: Path) -> None:
    done = launch(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = statuses(done)
    assert result.keys() == LINES
    assert "fail" not in result.values()
    assert done.stdout.splitlines()[-1].startswith("18 checks: ")
    assert not list(tmp_path.iterdir())


def test_the_links_are_left_for_the_planner(tmp_path: Path) -> None:
    done = forked(PROGRAM, *PATIENT, "--links=there/links.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(done)["links"] == "ok"
    there, back = read_links(tmp_path / "there" / "links.json")
    assert (there.source, there.destination, back.source, back.destination) == (0, 1, 1, 0)
    assert not there.crosses_nodes
    shown = re.search(r"edge 0->1 .* 64 B take (\d+) us .* at ([0-9.]+) GB/s", done.stdout)
    assert shown is not None
    assert (f"{1e6 * there.latency:.0f}", f"{there.bandwidth / 1e9:.2f}") == shown.groups()


def test_links_that_cannot_be_written_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = forked(PROGRAM, "--quick", "--links=file/links.json", cwd=tmp_path)
    assert done.returncode == 1
    assert statuses(done)["links"] == "fail"


def test_a_failure_is_the_status(tmp_path: Path) -> None:
    """One rank is enough to see that an interface is missing."""
    done = forked(PROGRAM, cwd=tmp_path, environment={"WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "nosuch0"})
    assert done.returncode == 1, done.stderr
    assert "fail  interface " in done.stdout
    assert "GLOO_SOCKET_IFNAME=nosuch0: no such interface with an address -> one of lo (127.0.0.1)" in done.stdout


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--timeout=0", "argument --timeout: 0: seconds, more than 0 and at most 60"),
        ("--timeout=soon", "argument --timeout: soon: seconds, more than 0 and at most 60"),
        ("--fast", "unrecognized arguments: --fast"),
    ],
)
def test_usage(option: str, reason: str, tmp_path: Path) -> None:
    done = forked(PROGRAM, option, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {reason}\n"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many: must be a whole number"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500", "MASTER_ADDR": ""},
            "MASTER_ADDR: must be set for WORLD_SIZE=2 processes to meet",
        ),
    ],
)
def test_an_environment_that_no_launcher_makes(variables: dict[str, str], reason: str, tmp_path: Path) -> None:
    done = forked(PROGRAM, cwd=tmp_path, environment=variables)
    assert done.returncode == 2
    assert done.stderr == f"error: {reason}\n"
