"""Local recovery: a killed rank is replaced and gets its inputs again, while the others only wait for it."""

import os
import random
import shutil
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.helpers.elastic import Elastic, children
from tests.stress.test_kills import JOB, LIMIT, RANKS, fingerprint

RECOVER = (*JOB, "engine.recovery=rank")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Fingerprint of a run without recovery, and seconds of a run with it."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name, options in (("plain", JOB), ("recover", RECOVER)):
        start = time.monotonic()
        job = Elastic.start(RANKS, folder / f"{name}.log", *options, f"run.dir={folder / name}")
        assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(folder / "plain") == fingerprint(folder / "recover")
    return fingerprint(folder / "plain"), time.monotonic() - start


def ranks(job: Elastic) -> list[int]:
    """Processes of the ranks, children of their supervisors."""
    return [child for supervisor in job.workers() for child in children(supervisor)]


def kill_and_wait(
    folder: Path, options: tuple[str, ...], draw: random.Random, expected: str, times: int = 1
) -> tuple[float, str]:
    """Kill random ranks, one after the other, at random moments once there is a checkpoint; how long the job took from
    then to its end, and what it printed."""
    run = folder / "run"
    supervised = "engine.recovery=rank" in options
    job = Elastic.start(RANKS, folder / "log", *options, f"run.dir={run}", restarts=1)
    end = time.monotonic() + LIMIT
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < end, job.output()
        time.sleep(0.005)
    start = time.monotonic()
    for _ in range(times):
        time.sleep(draw.random() * 0.5)
        victims = ranks(job) if supervised else job.workers()
        if victims:
            os.kill(draw.choice(victims), signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == expected, job.output()
    return time.monotonic() - start, job.output()


def test_a_replaced_rank_ends_with_the_same_bits(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    _, output = kill_and_wait(tmp_path, RECOVER, random.Random(1), unbroken[0])
    assert "was ended by SIGKILL, and begins anew while the others wait" in output
    assert "lost rank" not in output, "another rank was restarted"
    assert output.count("note: ") == 1, output


def test_rank_0_is_replaced_with_its_files_and_its_reports(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}")
    end = time.monotonic() + LIMIT
    while not (run / "checkpoints" / "batch-00000050" / "manifest.json").exists():
        assert time.monotonic() < end, job.output()
        time.sleep(0.005)
    os.kill(children(job.workers()[0])[0], signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken[0]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 24 + 1 + 4 + 1  # trained batches 0, 10, .., 239; validations; the test


@pytest.mark.slow
def test_a_rank_killed_before_the_rendezvous_costs_a_restart_of_all(
    tmp_path: Path, unbroken: tuple[str, float]
) -> None:
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}", restarts=1)
    end = time.monotonic() + LIMIT
    while not ranks(job):
        assert time.monotonic() < end, job.output()
        time.sleep(0.001)
    os.kill(ranks(job)[0], signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken[0]


def test_a_signal_ends_all_ranks_after_a_checkpoint_here_too(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}")
    end = time.monotonic() + LIMIT
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < end, job.output()
        time.sleep(0.005)
    os.kill(job.process.pid, signal.SIGTERM)
    job.wait(30)
    assert "note: SIGTERM: stopped after batch " in job.output()
    again = Elastic.start(2, tmp_path / "again", *JOB, f"run.dir={run}")
    assert again.wait(LIMIT) == 0, again.output()
    assert fingerprint(run) == unbroken[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", [("algorithm=al",), ("algorithm=predsim",), ("algorithm=bp", "schedule=naive")])
def test_every_rule_recovers(tmp_path: Path, rule: tuple[str, ...]) -> None:
    run = tmp_path / "whole"
    job = Elastic.start(RANKS, tmp_path / "log", *JOB, *rule, f"run.dir={run}")
    assert job.wait(LIMIT) == 0, job.output()
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_and_wait(folder, (*RECOVER, *rule), random.Random(seed), fingerprint(run))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_and_what_each_kind_of_recovery_costs(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """Seconds from the first checkpoint to the end of the job, with a kill on the way and without, side by side."""
    first = int(os.environ.get("COUNTERFLOW_SEED", "0"))
    kinds = {"one replaced": (RECOVER, 1), "all restarted": (JOB, 1), "none killed": (RECOVER, 0)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(first, first + 50):
        for name, (options, times) in kinds.items():
            if name != "one replaced" and seed % 5:
                continue
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            seconds[name].append(kill_and_wait(folder, options, random.Random(seed), unbroken[0], times)[0])
            shutil.rmtree(folder)
        medians = {name: f"{statistics.median(taken):.2f} s of {len(taken)}" for name, taken in seconds.items()}
        print(f"{seed - first + 1} of 50: medians to the end {medians}", flush=True)
