"""The table and the command that a plan ends with."""

import json
import shlex

from counterflow.cli.hydra_app import load_config
from counterflow.planner.cli import candidate_table, to_json, train_command
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
    config = load_config(shlex.split(line)[3:])
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
