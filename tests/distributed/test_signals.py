"""Signals and frozen ranks in real jobs."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.elastic import Elastic
from tests.helpers.kills import JOB, LIMIT, fingerprint, until, until_checkpoint

FOREVER = "train.steps=1000000"


def training(job: Elastic, run: Path) -> None:
    """Return once there is a checkpoint."""
    until_checkpoint(job, run)
    assert job.process.is_alive(), job.output()


def result(run: Path) -> tuple[str, object]:
    summary = json.loads((run / "summary.json").read_text())
    return fingerprint(run), summary["resumed_after"]


def finish(run: Path, ranks: int, expected: str) -> object:
    """Resume ``run`` to its end; returns the batches after which it resumed."""
    log = run.with_suffix(".again")
    job = Elastic.start(ranks, log, *JOB, f"run.dir={run}")
    assert job.wait(LIMIT) == 0, job.output()
    found, after = result(run)
    assert found == expected
    return after


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher(tmp_path: Path, unbroken: tuple[str, float], number: signal.Signals) -> None:
    """Slurm, Kubernetes and a user at a terminal signal the launcher: torchrun passes it on to all ranks."""
    run = tmp_path / "run"
    job = Elastic.start(4, tmp_path / "log", *JOB, f"run.dir={run}")
    training(job, run)
    os.kill(job.process.pid, number)
    job.wait(30)
    (line,) = job.output().splitlines()
    name = f"note: {number.name}: stopped after batch "
    assert line.startswith(name)
    assert line.endswith(", with a checkpoint; run.resume=auto goes on")
    batches = int(line.removeprefix(name).split(",")[0]) + 1
    assert (run / "checkpoints" / f"batch-{batches:08}" / "manifest.json").exists()
    assert finish(run, 2, unbroken[0]) == batches


def test_a_signal_to_one_rank_alone(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(3, tmp_path / "log", *JOB, f"run.dir={run}")
    training(job, run)
    os.kill(job.workers()[2], signal.SIGTERM)
    assert job.wait(30) != 0
    assert "note: SIGTERM: stopped after batch " in job.output()
    assert "exitcode: 143" in Path(f"{job.log}.agent").read_text()
    finish(run, 2, unbroken[0])


def test_a_signal_to_a_single_process(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(1, tmp_path / "log", *JOB, f"run.dir={run}")
    training(job, run)
    os.kill(job.workers()[0], signal.SIGINT)
    job.wait(30)
    assert "exitcode: 130" in Path(f"{job.log}.agent").read_text()
    finish(run, 2, unbroken[0])


def test_without_checkpoints_the_end_is_at_once(tmp_path: Path) -> None:
    job = Elastic.start(2, tmp_path / "log", *JOB, FOREVER, "checkpoint.every=0", f"run.dir={tmp_path / 'run'}")
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size, job)
    os.kill(job.workers()[0], signal.SIGTERM)
    job.wait(15)
    assert "exitcode: 143" in Path(f"{job.log}.agent").read_text()


def test_a_checkpoint_that_cannot_be_has_its_grace_and_a_second_signal_grants_none(tmp_path: Path) -> None:
    for second in (False, True):
        run, log = tmp_path / f"run{second}", tmp_path / f"log{second}"
        job = Elastic.start(2, log, *JOB, FOREVER, f"checkpoint.grace={60 if second else 1}", f"run.dir={run}")
        training(job, run)
        first, frozen = job.workers()
        os.kill(frozen, signal.SIGSTOP)
        os.kill(first, signal.SIGTERM)
        start = time.monotonic()
        if second:
            time.sleep(1)
            assert first in job.workers(), "the first signal is not the end"
            os.kill(first, signal.SIGTERM)
        until(lambda job=job, first=first: first not in job.workers(), job, 15)  # type: ignore[misc]
        assert time.monotonic() - start >= 1
        os.kill(frozen, signal.SIGCONT)
        job.wait(30)
        late = "error: no checkpoint within checkpoint.grace=1 s of SIGTERM"
        assert (late in job.output()) == (not second)
        assert "exitcode: 143" in Path(f"{log}.agent").read_text()


@pytest.mark.slow
def test_restarted_when_all_was_done_there_is_nothing_to_do(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """A rank was lost after the summary had been written: torchrun restarts all, and they find the run finished."""
    run = tmp_path / "run"
    assert Elastic.start(2, tmp_path / "log", *JOB, f"run.dir={run}").wait(LIMIT) == 0
    job = Elastic.start(2, tmp_path / "again", *JOB, f"run.dir={run}", restarts=1)  # refused, and so restarted
    assert job.wait(LIMIT) == 0, job.output()
    assert job.output().splitlines()[-1] == f"note: {run}: has finished"
    assert result(run) == (unbroken[0], None)


@pytest.mark.slow
def test_a_rank_that_is_frozen_for_a_while_changes_nothing(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(4, tmp_path / "log", *JOB, f"run.dir={run}")
    training(job, run)
    frozen = job.workers()[1]
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(5)
    assert len(job.workers()) == 4
    os.kill(frozen, signal.SIGCONT)
    assert job.wait(LIMIT) == 0, job.output()
    assert result(run) == (unbroken[0], None)


def test_a_rank_that_stays_frozen_ends_the_run_with_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Elastic.start(4, tmp_path / "log", *JOB, FOREVER, "engine.timeout=2", f"run.dir={run}")
    training(job, run)
    frozen = job.workers()[1]
    os.kill(frozen, signal.SIGSTOP)
    start = time.monotonic()
    until(lambda: len(job.workers()) < 4, job, 30)
    assert time.monotonic() - start < 15
    until(lambda: "does not answer" in job.output(), job, 15)
    os.kill(frozen, signal.SIGCONT)  # or torchrun would wait for half a minute
    assert job.wait(60) != 0
    report = job.output()
    assert report.count("does not answer") == 1, report
    for rank in (0, 2, 3):
        assert f"rank {rank}: waits since " in report
    assert "nothing for 2 s (engine.timeout)" in report
    for end in ("activation edge 1->2 to rank 1", "activation edge 2->3 from rank 1", "target edge 4->3 to rank 2"):
        assert end in report
    assert "rank 1: does not answer" in report
