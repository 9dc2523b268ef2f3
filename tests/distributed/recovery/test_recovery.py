"""Killed ranks: torchrun's agent restarts all, or a supervisor replaces one, and the final bits are the same."""

import os
import random
import signal
from pathlib import Path

from tests.helpers.elastic import Elastic, children
from tests.helpers.kills import (
    JOB,
    LIMIT,
    RANKS,
    RECOVER,
    fingerprint,
    kill_and_wait,
    kill_one,
    unbroken_run,
    until_checkpoint,
)


def test_killed_and_restarted_the_bits_are_the_same(unbroken: tuple[str, float], tmp_path: Path) -> None:
    kill_one(tmp_path, random.Random(0), unbroken)


def test_replaced_ranks_end_with_the_same_bits(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    """A rank in the middle, and then rank 0 with its files and its reports."""
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}", restarts=1)
    for rank, batches in ((2, None), (0, 80)):
        until_checkpoint(job, run, batches)
        os.kill(children(job.workers()[rank])[0], signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken[0]
    output = job.output()
    assert output.count("was ended by SIGKILL, and begins anew while the others wait") == 2, output
    assert "lost rank" not in output, "another rank was restarted"
    assert output.count("note: ") == 2, output
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 16 + 1 + 4 + 1  # trained batches 0, 10, .., 159; validations; the test


def test_replaced_ranks_meet_their_copies_again(tmp_path: Path) -> None:
    """A copy that begins anew brings to a meeting what it had brought."""
    options = (*JOB, "blocks=2", "replicas=2", "optimizer.average=0", "sync.mode=parameters", "sync.every=7")
    options = (*options, "sync.delay=5")
    expected, _ = unbroken_run(tmp_path, "whole", *options)
    recover = (*options, "engine.recovery=rank")
    kill_and_wait(tmp_path, recover, random.Random(1), expected, times=2)


def test_a_signal_ends_all_ranks_after_a_checkpoint_here_too(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(3, tmp_path / "log", *RECOVER, f"run.dir={run}")
    until_checkpoint(job, run)
    os.kill(job.process.pid, signal.SIGTERM)
    job.wait(30)
    assert "note: SIGTERM: stopped after batch " in job.output()
    again = Elastic.start(2, tmp_path / "again", *JOB, f"run.dir={run}")
    assert again.wait(LIMIT) == 0, again.output()
    assert fingerprint(run) == unbroken[0]
