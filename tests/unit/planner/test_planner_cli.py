"""The program as a user starts it, and the command that it ends with."""

import json
import shlex
from pathlib import Path

import pytest
from test_launch import ROOT, start

from counterflow.cli.hydra_app import load_config
from counterflow.planner.cli import candidate_table, to_json, train_command
from tests.helpers.processes import CONF
from tests.helpers.synthetic_profiles import profile, searched


def test_the_command_is_one_that_trains() -> None:
    best = searched(profile([1.0, 1.0, 1.0]), 2).best
    overrides = [
        "model.hidden=2",
        "machines.ranks=2",
        "engine.threads=auto",
        "run.dir=a b",
        "plan.out=x",
        "engine.lag=2",
    ]
    line = train_command(best, overrides, threads=3)
    assert line == (
        "torchrun --nproc_per_node=2 launch/train.py model.hidden=2 'run.dir=a b' "
        "blocks=2 model.cut=[1,2] engine.lag=2 engine.depth=2 engine.threads=3"
    )
    config = load_config(CONF, shlex.split(line)[3:])
    assert (config.blocks, config.model.cut, config.run.dir) == (2, [1, 2], "a b")


def test_one_block_needs_no_torchrun() -> None:
    assert train_command(searched(profile([1.0]), 4).best, [], 1).startswith(
        "python launch/train.py blocks=1 model.cut=[1]"
    )


def test_a_plan_is_told_with_what_was_refused() -> None:
    found = searched(profile([1.0] * 4, parameters=1000), 4, memory=9_000.0)
    assert candidate_table(found).row_count == 3
    told = json.loads(json.dumps(to_json(found)))
    assert [row["blocks"] for row in told["predicted"]] == [2, 3, 4]
    assert told["best"] == 4
    assert told["too_large"] == [{"blocks": 1, "memory": 16_002}]


@pytest.mark.timeout(60)
def test_the_program_plans_and_its_command_trains(tmp_path: Path) -> None:
    run = ("model.hidden=2", "model.width=32", "train.steps=4", "checkpoint.every=0", "run.display=false")
    done = start(str(ROOT / "launch" / "plan.py"), *run, "machines.ranks=2", "plan.out=there/plan.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    *_, last = done.stdout.splitlines()
    assert "Predicted, not run" in done.stdout
    plan = json.loads((tmp_path / "there" / "plan.json").read_text())
    assert [row["blocks"] for row in plan["predicted"]] == [1, 2]
    assert len(plan["measured"]["layers"]) == 3
    assert plan["machines"]["ranks"] == 2
    overrides = last.partition("launch/train.py ")[2]
    trained = start(str(ROOT / "launch" / "train.py"), *shlex.split(overrides), "run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = next(row for row in plan["predicted"] if row["blocks"] == plan["best"])
    assert summary["cut"] == best["cut"]


def test_what_is_wrong_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = start(str(ROOT / "launch" / "plan.py"), "model.hidden=1", "machines.memory_gb=1e-9", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: machines.memory_gb=1e-09: must be at least ")
