"""The table and the command that a plan ends with."""

import json
import re
import shlex

import pytest

from counterflow.cli.hydra_app import load_config
from counterflow.planner.cli import candidate_table, to_json, train_command
from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.options import WIRES
from counterflow.planner.reasons import reasons
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


def test_a_command_for_nodes() -> None:
    layers = profile([1.0] * 2, up=[10] * 2, parameters=1000)
    coarser = {"int8": profile([1.0] * 2, up=[2] * 2, parameters=1000)}
    best = searched(layers, 4, nodes=2, bandwidth=15.0, replicas=2, coarser=coarser).candidates[-1]
    overrides = ["replicas=2", "engine.wire=fp32", "machines.nodes=2", "train.batch_size=64"]
    line = train_command(best, overrides, 1, on_nodes=True)
    assert line == (
        "torchrun --nnodes=2 --nproc_per_node=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT launch/train.py "
        f"replicas=2 train.batch_size=64 blocks=2 model.cut=[1,1] engine.lag={best.lag} engine.depth={best.depth} "
        "engine.threads=1 engine.wire=int8 topology.inner=replicas"
    )
    config = load_config(shlex.split(line.partition("launch/train.py ")[2]))
    assert (config.engine.wire, config.topology.inner, config.replicas) == ("int8", "replicas", 2)
    assert train_command(best, [], 1).startswith("torchrun --nproc_per_node=4 launch/train.py blocks=2 ")


def test_reasons_have_the_rates_of_what_was_not_chosen() -> None:
    layers, coarser = profile([1.0] * 2, up=[300] * 2), {"bf16": profile([1.0] * 2, up=[150] * 2)}
    best = searched(layers, 2, bandwidth=100.0, coarser=coarser).candidates[-1]
    told = reasons(best, LocalRun(), 64, WIRES)
    assert told == [
        "engine.wire=bf16: blocks compute for 1e+03 ms a batch, the busiest link carries it in 1.5e+03 ms; "
        "43 samples/s, but 21 samples/s with fp32; it changes the result, see docs/many_machines.md",
        "engine.lag=2 engine.depth=2: the smallest ones allowed, larger ones are not 1 % faster",
    ]


def test_reasons_for_a_lag() -> None:
    best = searched(profile([1.0] * 4), 4, latency=2.0).candidates[-1]
    wire, lag = reasons(best, LocalRun(), 64, WIRES)
    assert wire.startswith("engine.wire=fp32: blocks compute for 1e+03 ms a batch, the busiest link carries it in 0 ms")
    assert wire.endswith("; smaller messages would not be faster")
    assert reasons(best, LocalRun(), 64, ["fp32"])[0].endswith("; the only one allowed")
    assert lag.startswith(f"engine.lag={best.lag} engine.depth={best.depth}: 6")
    rate = re.search("but (..) samples/s with lag 2 and depth 2", lag)
    assert rate is not None
    assert 64 / int(rate[1]) == pytest.approx(2.08, rel=0.05), "batch times, by the table of the design"


def test_reasons_for_a_placement() -> None:
    layers = profile([1.0] * 2, up=[3_000_000] * 2, parameters=1_000_000)
    best = searched(layers, 4, nodes=2, replicas=2).candidates[-1]
    *_, inner = reasons(best, LocalRun(), 64, WIRES)
    assert inner == (
        "topology.inner=pipeline: with pipeline 4 MB a batch cross nodes (0 between blocks, 4 between copies), "
        "64 samples/s; with replicas 6 MB a batch cross nodes (6 between blocks, 0 between copies), 64 samples/s"
    )
    small = searched(layers, 2, nodes=1, replicas=2).candidates[-1]
    assert reasons(small, LocalRun(), 64, WIRES) == ["topology.inner=pipeline: all processes are on one node"]
