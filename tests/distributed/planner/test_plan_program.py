"""The planner as a user starts it."""

import json
import shlex
from pathlib import Path

import pytest

from counterflow.measured_links import MeasuredLink, write_links
from tests.helpers.launch import ROOT, forked


@pytest.mark.timeout(60)
def test_the_program_plans_and_its_command_trains(tmp_path: Path) -> None:
    run = (
        "model.hidden=2",
        "model.width=32",
        "train.steps=4",
        "checkpoint.every=0",
        "run.display=false",
        "engine.wire=int8",
    )
    done = forked(str(ROOT / "launch" / "plan.py"), *run, "machines.ranks=2", "plan.out=there/plan.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    *_, last = done.stdout.splitlines()
    assert "Predicted, not run" in done.stdout
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert [row["blocks"] for row in plan["predicted"]] == [1, 2]
    assert len(plan["measured"]["layers"]) == 3
    assert plan["machines"]["ranks"] == 2
    overrides = last.partition("launch/train.py ")[2]
    trained = forked(str(ROOT / "launch" / "train.py"), *shlex.split(overrides), "run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = next(row for row in plan["predicted"] if row["blocks"] == plan["best"])
    assert summary["cut"] == best["cut"]
    assert summary["bytes_per_batch"] == best["bytes_per_batch"]
    assert [len(row["bytes_per_batch"]["up"]) for row in plan["predicted"]] == [0, 1]
    assert ("MB a batch over each edge of the best, engine.wire=int8: up " in done.stdout) == (best["blocks"] == 2)


@pytest.mark.timeout(60)
def test_replicas_are_planned_for_measured_links_and_trained(tmp_path: Path) -> None:
    """Two nodes of two processes, over a link that carries next to nothing."""
    nodes = ((0, 1, 0, 0, 1e9), (1, 2, 0, 1, 1e4), (2, 3, 1, 1, 1e9))
    write_links(
        tmp_path / "links.json",
        [
            MeasuredLink(source=a, destination=b, source_node=m, destination_node=n, latency=1e-3, bandwidth=bandwidth)
            for a, b, m, n, bandwidth in nodes
        ],
    )
    run = ("model.hidden=1", "model.width=32", "train.steps=4", "checkpoint.every=0", "run.display=false", "replicas=2")
    run = (*run, "train.accumulate=2", "sync.mode=parameters", "sync.every=2", "sync.delay=1")
    machines = ("machines.ranks=4", "machines.links=links.json", "plan.out=plan.json")
    done = forked(str(ROOT / "launch" / "plan.py"), *run, *machines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["machines"]["nodes"], plan["machines"]["bandwidth_gbps"]) == (2, pytest.approx(8e-5))
    assert [(row["blocks"], row["processes"], row["nodes"]) for row in plan["predicted"]] == [(1, 2, 1), (2, 4, 2)]
    two = plan["predicted"][1]
    assert {trial["inner"] for trial in two["trials"]} == {"pipeline", "replicas"}
    assert all(sum(trial["crossing"].values()) > 0 for trial in two["trials"])
    assert plan["best"] == 1, "on one node nothing crosses"
    assert "topology.inner=pipeline: all processes are on one node" in done.stdout
    *_, last = done.stdout.splitlines()
    overrides = shlex.split(last.partition("launch/train.py ")[2])
    trained = forked(str(ROOT / "launch" / "train.py"), *overrides, "run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    # The other candidate, on this process.
    cut = f"model.cut={two['cut']}".replace(" ", "")
    other = (*run, "blocks=2", cut, f"engine.wire={two['wire']}", f"engine.lag={two['lag']}", "run.dir=other")
    trained = forked(str(ROOT / "launch" / "train.py"), *other, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert summary["bytes_per_batch"] == {way: two["bytes_per_batch"][way] for way in ("up", "down")}


def test_what_is_wrong_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = forked(str(ROOT / "launch" / "plan.py"), "model.hidden=1", "machines.memory_gb=1e-9", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: machines.memory_gb=1e-09: must be at least ")
