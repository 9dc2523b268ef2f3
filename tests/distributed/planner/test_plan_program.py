"""The planner as a user starts it."""

import json
import shlex
from pathlib import Path

import pytest

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


def test_what_is_wrong_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = forked(str(ROOT / "launch" / "plan.py"), "model.hidden=1", "machines.memory_gb=1e-9", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: machines.memory_gb=1e-09: must be at least ")
