"""Campaigns of kills: at any moment, of any rank, and the final parameters are the bits of an unbroken run."""

import itertools
import json
import os
import random
import shutil
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.elastic import Elastic
from tests.helpers.kills import (
    JOB,
    LIMIT,
    RANKS,
    RECOVER,
    fingerprint,
    kill_all,
    kill_and_wait,
    kill_one,
    ranks,
    unbroken_run,
    until,
)

TIMES = int(os.environ.get("COUNTERFLOW_KILLS", "200"))
FIRST = int(os.environ.get("COUNTERFLOW_SEED", "0"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Fingerprint of an unbroken run, and its seconds on a machine that is warm."""
    folder = tmp_path_factory.mktemp("unbroken")
    unbroken_run(folder, "warm", *JOB)
    return unbroken_run(folder, "run", *JOB)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kill", "times"), [(kill_one, TIMES), (kill_all, TIMES // 2)])
def test_killed_many_times(kill, times: int, unbroken: tuple[str, float], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    phases: Counter[str] = Counter()
    start = time.monotonic()
    for seed in itertools.count(FIRST):
        folder = tmp_path / str(seed)
        folder.mkdir()
        phases[kill(folder, random.Random(seed), unbroken)] += 1
        shutil.rmtree(folder)
        killed = phases.total() - phases["after the end"]
        print(f"{killed} of {times}, {time.monotonic() - start:.0f} s: {dict(phases)}", flush=True)
        if killed == times:
            break
    assert phases["during a checkpoint"] > 0


def test_a_rank_killed_before_the_rendezvous_costs_a_restart_of_all(
    tmp_path: Path, unbroken: tuple[str, float]
) -> None:
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}", restarts=1)
    until(lambda: ranks(job), job)
    assert job.kill(ranks(job)[0])
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "rule",
    [
        ("algorithm=al",),
        ("algorithm=predsim",),
        ("algorithm=bp", "schedule=naive", "checkpoint.best=false"),
        ("algorithm=bp", "schedule=pipedream", "checkpoint.best=false"),
    ],
)
def test_every_rule_recovers(tmp_path: Path, rule: tuple[str, ...]) -> None:
    run = tmp_path / "whole"
    job = Elastic.start(RANKS, tmp_path / "log", *JOB, *rule, f"run.dir={run}")
    assert job.wait(LIMIT) == 0, job.output()
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_and_wait(folder, (*RECOVER, *rule), random.Random(seed), fingerprint(run))


@pytest.mark.timeout(600)
def test_an_early_end_stays_where_it_is(tmp_path: Path) -> None:
    """Kills come before the evaluation that decides, between it and the end, and after."""
    options = ("train.patience=2", "data.validation=0.2", "train.evaluate_every=5", "optimizer.lr=0.2")
    expected, _ = unbroken_run(tmp_path, "whole", *JOB, *options)
    steps = json.loads((tmp_path / "whole" / "summary.json").read_text())["steps"]
    assert 40 < steps < 160
    for seed, recovery in itertools.product(range(5), ("all", "rank")):
        folder = tmp_path / f"{recovery} {seed}"
        folder.mkdir()
        chosen = (*JOB, *options, f"engine.recovery={recovery}")
        kill_and_wait(folder, chosen, random.Random(seed), expected)
        assert json.loads((folder / "run" / "summary.json").read_text())["steps"] == steps


LANGUAGE_MODEL = (
    "data=stdlib", "data.length=16", "data.evaluated=32", "model=gpt", "model.layers=4", "model.width=16",
    "model.heads=2", "model.hidden=24", "model.dropout=0.1", "blocks=4", "optimizer.clip=1", "train.batch_size=8",
    "train.steps=160", "train.evaluate_every=40", "checkpoint.every=10", "engine.threads=1", "engine.timeout=60",
    "engine.recompute=true", "engine.wire=bf16", "train.accumulate=2", "run.display=false",
)  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "rule",
    [
        ("algorithm=bll", "algorithm.head.layers=1", "algorithm.feedback.refresh=4"),
        ("algorithm=predsim", "algorithm.beta=0", "algorithm.head.layers=1"),
        ("algorithm=al", "algorithm.dim=12"),
    ],
    ids=["bll", "predsim", "al"],
)
def test_language_models_recover(tmp_path: Path, rule: tuple[str, ...]) -> None:
    options = (*LANGUAGE_MODEL, *rule, f"data.cache={tmp_path / 'cache'}")
    expected, _ = unbroken_run(tmp_path, "whole", *options)
    for seed, recovery in itertools.product(range(2), ("all", "rank")):
        folder = tmp_path / f"{recovery} {seed}"
        folder.mkdir()
        kill_and_wait(folder, (*options, f"engine.recovery={recovery}"), random.Random(seed), expected)


REPLICAS = (*JOB, "blocks=2", "replicas=2", "optimizer.average=0")
PARAMETERS = ("sync.mode=parameters", "sync.every=7", "sync.delay=5", "sync.outer_lr=0.7", "sync.outer_momentum=0.9")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [(), PARAMETERS], ids=["gradients", "parameters"])
@pytest.mark.parametrize("rule", ["bll", "al", "predsim"])
def test_replicas_recover(tmp_path: Path, rule: str, mode: tuple[str, ...]) -> None:
    """Checkpoints after every ten batches fall before, within and after meetings."""
    options = (*REPLICAS, *mode, f"algorithm={rule}")
    expected, _ = unbroken_run(tmp_path, "whole", *options)
    for seed, recovery in itertools.product(range(4), ("all", "rank")):
        folder = tmp_path / f"{recovery} {seed}"
        folder.mkdir()
        kill_and_wait(folder, (*options, f"engine.recovery={recovery}"), random.Random(seed), expected)


@pytest.mark.timeout(3600)
def test_fifty_kills_and_what_each_kind_of_recovery_costs(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """Seconds from the first checkpoint to the end of the job, with a kill on the way and without, side by side."""
    kinds = {"one replaced": (RECOVER, 1), "all restarted": (JOB, 1), "none killed": (RECOVER, 0)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(FIRST, FIRST + 50):
        for name, (options, times) in kinds.items():
            if name != "one replaced" and seed % 5:
                continue
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            seconds[name].append(kill_and_wait(folder, options, random.Random(seed), unbroken[0], times)[0])
            shutil.rmtree(folder)
        medians = {name: f"{statistics.median(taken):.2f} s of {len(taken)}" for name, taken in seconds.items()}
        print(f"{seed - FIRST + 1} of 50: medians to the end {medians}", flush=True)
