"""Jobs on two and three nodes, as namespaces: the bits of one process, and the end of ranks, agents and links.

A node differs from a process of this machine in what does not come: packets of a link that is down, or of a machine
without power. Nobody closes a connection then.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterflow.transport.keepalive import SILENCE
from tests.helpers.elastic import children
from tests.helpers.kills import JOB, RECOVER, fingerprint, ranks, until, until_checkpoint
from tests.helpers.launch import ROOT
from tests.helpers.node_jobs import LONG, error, running, seconds_to_the_end_of, start, wait
from tests.helpers.nodes import Node, nodes, unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no namespaces: {unavailable_reason()}")

LOST_NODE, LOST_PROCESS = 30.0, 10.0
"""Seconds within which all ranks have ended."""
LIMIT = 60.0
"""Seconds for a job that trains for two."""


def test_two_nodes_whose_clocks_differ_have_the_bits_of_one_machine(
    tmp_path: Path, unbroken: tuple[str, float]
) -> None:
    with nodes(2, clocks=(0, 1_000_000)) as both, running(both, tmp_path, *JOB, f"run.dir={tmp_path / 'run'}") as jobs:
        wait(jobs, LIMIT)
    assert fingerprint(tmp_path / "run") == unbroken[0]


@pytest.mark.parametrize("options", [JOB, pytest.param(RECOVER, marks=pytest.mark.slow)], ids=["all", "rank"])
def test_a_link_that_is_down_for_seconds_changes_nothing(
    tmp_path: Path, unbroken: tuple[str, float], options: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    with nodes(2) as both, running(both, tmp_path, *options, f"run.dir={run}") as jobs:
        until_checkpoint(jobs[0], run)
        both[1].unplug()
        time.sleep(4)
        assert not (run / "summary.json").exists(), "it has ended before"
        both[1].plug()
        wait(jobs, LIMIT)
    assert fingerprint(run) == unbroken[0]


def test_nodes_that_share_no_folder_send_their_checkpoints_and_get_them_back(
    tmp_path: Path, unbroken: tuple[str, float]
) -> None:
    run, gather = tmp_path / "run", ("checkpoint.transport=gather",)
    with nodes(2) as both:
        for node in both:
            node.mount(tmp_path / f"disk of {node.name}", run)
        first, second = (tmp_path / f"disk of {node.name}" for node in both)
        with running(both, tmp_path, *JOB, *gather, f"run.dir={run}") as jobs:
            until_checkpoint(jobs[0], first)
            for job in jobs:
                job.kill_all()
        assert not list(second.iterdir())
        with running(both, tmp_path, *JOB, *gather, f"run.dir={run}") as jobs:
            wait(jobs, LIMIT)
        assert "goes on after batch" in jobs[0].output()
        assert not list(second.iterdir())
    assert fingerprint(first) == unbroken[0]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("shared", "gather"), ("gather", "shared")])
def test_a_checkpoint_of_one_transport_resumes_under_the_other(
    tmp_path: Path, unbroken: tuple[str, float], before: str, after: str
) -> None:
    run = tmp_path / "run"
    with nodes(3) as some:
        with running(some, tmp_path, *JOB, f"checkpoint.transport={before}", f"run.dir={run}") as jobs:
            until_checkpoint(jobs[0], run)
            for job in jobs:
                job.kill_all()
        with running(some[:2], tmp_path, *JOB, f"checkpoint.transport={after}", f"run.dir={run}") as jobs:
            wait(jobs, LIMIT)
            assert "goes on after batch" in jobs[0].output()
    assert fingerprint(run) == unbroken[0]


def test_a_rank_that_is_killed_ends_all_within_seconds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nodes(2) as both, running(both, tmp_path, *LONG, f"run.dir={run}") as jobs:
        until_checkpoint(jobs[0], run)
        assert jobs[1].kill(jobs[1].workers()[0])
        assert seconds_to_the_end_of(jobs, LOST_PROCESS) < LOST_PROCESS
        assert re.search(r"rank 0: .* edge .* with rank 1: .* of batch \d+: lost rank 1", error(jobs[0]))
        assert jobs[0].wait(LOST_PROCESS) == 1


# --- slower: the kernel takes its time to call a machine silent -------------------------------------------------------


def cut(kind: str, node: Node) -> None:
    if kind == "unplugged":
        node.unplug()
    else:
        node.set_interface("down")


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["all", "rank"])
@pytest.mark.parametrize("kind", ["unplugged", "interface down"])
@pytest.mark.parametrize(("count", "lost"), [(2, 0), (2, 1), (3, 0), (3, 1)])
def test_a_node_that_falls_silent_ends_all_ranks(
    tmp_path: Path, count: int, lost: int, kind: str, recovery: str
) -> None:
    """Those on the lost node as well, which see all others fall silent."""
    run = tmp_path / "run"
    with nodes(count) as some, running(some, tmp_path, *LONG, f"engine.recovery={recovery}", f"run.dir={run}") as jobs:
        until_checkpoint(jobs[0], run)
        cut(kind, some[lost])
        seconds_to_the_end_of(jobs, LOST_NODE)
        neighbour = 1 if lost == 0 else 0
        name = f"no answer from {some[lost].name} " if recovery == "all" else "no answer "
        waited = rf"rank {neighbour}: .* (from|to) rank {lost}: (waiting|room) for .* of batch \d+"
        reason = rf"lost rank {lost} \({name}for {SILENCE:g} s|no answer from the launcher's store"
        assert re.search(rf"error: {waited}: ({reason})", error(jobs[neighbour])), error(jobs[neighbour])


@pytest.mark.slow
@pytest.mark.parametrize("recovery", ["all", "rank"])
def test_a_rank_that_stands_still_longer_than_that_is_not_taken_for_lost(
    tmp_path: Path, unbroken: tuple[str, float], recovery: str
) -> None:
    run = tmp_path / "run"
    with nodes(2) as both, running(both, tmp_path, *JOB, f"engine.recovery={recovery}", f"run.dir={run}") as jobs:
        until_checkpoint(jobs[0], run)
        stopped = jobs[1].workers() + (ranks(jobs[1]) if recovery == "rank" else [])
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SILENCE + 8)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait(jobs, LIMIT)
    assert fingerprint(run) == unbroken[0]


@pytest.mark.slow
def test_a_node_that_comes_back_goes_on(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """Its agent starts its rank anew once the link is there again, as the agents of the other nodes do."""
    run = tmp_path / "run"
    with nodes(2) as both, running(both, tmp_path, *JOB, f"run.dir={run}", restarts=3) as jobs:
        until_checkpoint(jobs[0], run)
        before = [job.workers() for job in jobs]
        both[1].unplug()
        until(lambda: not any(set(old) & set(job.workers()) for old, job in zip(before, jobs, strict=True)), jobs[0])
        both[1].plug()
        wait(jobs, 2 * LIMIT)
    assert fingerprint(run) == unbroken[0]


@pytest.mark.slow
def test_another_agent_takes_the_place_of_one_that_was_killed(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """With a store for each start of the ranks: an agent that keeps its store does not say again where it is."""
    run, own_store = tmp_path / "run", {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with nodes(2) as both, running(both, tmp_path, *JOB, f"run.dir={run}", restarts=3, **own_store) as jobs:
        until_checkpoint(jobs[0], run)
        jobs[1].kill_all()  # as when a machine is reset
        again = start(both[1], both, tmp_path, *JOB, f"run.dir={run}", restarts=3, **own_store)
        jobs.append(again)
        wait([jobs[0], again], 2 * LIMIT)
    assert fingerprint(run) == unbroken[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_agent_that_is_killed_ends_all_and_other_nodes_go_on(
    tmp_path: Path, unbroken: tuple[str, float], victim: int
) -> None:
    run = tmp_path / "run"
    with nodes(3) as three:
        with running(three, tmp_path, *JOB, f"run.dir={run}") as jobs:
            until_checkpoint(jobs[0], run)
            workers = jobs[victim].workers()
            os.kill(jobs[victim].process.pid, signal.SIGKILL)
            jobs[victim].process.join(10)
            others = [job for number, job in enumerate(jobs) if number != victim]
            seconds_to_the_end_of(others, LOST_PROCESS)
            assert not set(workers) & set(children(1)), "a rank outlives its agent"
        with running(three[:2], tmp_path / "again", *JOB, f"run.dir={run}") as jobs:
            wait(jobs, LIMIT)
    assert fingerprint(run) == unbroken[0]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["1f1b"])
def test_a_pipeline_of_backprop_ends_as_well(tmp_path: Path, schedule: str) -> None:
    run = tmp_path / "run"
    options = ("algorithm=bp", f"schedule={schedule}")
    with nodes(2) as both, running(both, tmp_path, *LONG, *options, f"run.dir={run}") as jobs:
        until_checkpoint(jobs[0], run)
        both[1].unplug()
        seconds_to_the_end_of(jobs, LOST_NODE)
        assert "timed out" in error(jobs[0]) or "no answer" in error(jobs[0])


def ten_commands(node: Node, first: Node) -> str:
    """Those of docs/many_machines.md, as one script for ``node``, without the installation and for a short run."""
    text = (ROOT / "docs" / "many_machines.md").read_text()
    everywhere, there = re.findall(r"```\n(.*?)```", text[text.index("## Ten commands") :], re.DOTALL)[:2]
    lines = everywhere.splitlines()[2:] + (there.splitlines() if node == first else [])
    assert len(lines) == (8 if node == first else 6)
    script = "\n".join(lines).replace("HOST=1 HERE=10.0.0.1", f"HOST={int(node == first)} HERE={node.address}")
    script = script.replace("10.0.0.", first.address.removesuffix("1"))
    return f"set -e\n{script}".replace("run.dir=", "train.steps=30 run.display=false run.dir=")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_ten_commands_of_the_documentation(tmp_path: Path) -> None:
    """With torchrun itself, and a disk for each node."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with nodes(2) as both:
        started = []
        for node in both:
            folder = tmp_path / node.name
            folder.mkdir()
            (folder / "launch").symlink_to(ROOT / "launch")
            enter = ("nsenter", f"--target={node.pid}", "--net", "--uts")
            started.append(
                subprocess.Popen(
                    [*enter, "bash", "-c", ten_commands(node, both[0])],
                    cwd=folder,
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            outputs = []
            for process in started:
                output, _ = process.communicate(timeout=300)
                assert process.returncode == 0, output
                outputs.append(output)
        finally:
            for process in started:
                process.kill()
    assert '"ranks": 2' in outputs[0]
    assert re.search(r"^accuracy 0\.\d+$", outputs[0], re.MULTILINE)
    assert not (tmp_path / "node1" / "runs" / "two").exists()
