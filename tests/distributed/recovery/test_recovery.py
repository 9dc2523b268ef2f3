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


def test_recovery_changes_no_bit_of_a_run_that_loses_nothing(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    assert unbroken_run(tmp_path, "recover", *RECOVER, ranks=2)[0] == unbroken[0]


def test_killed_and_restarted_the_bits_are_the_same(unbroken: tuple[str, float], tmp_path: Path) -> None:
    kill_one(tmp_path, random.Random(0), unbroken)


def test_a_replaced_rank_ends_with_the_same_bits(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    _, output = kill_and_wait(tmp_path, RECOVER, random.Random(1), unbroken[0])
    assert "was ended by SIGKILL, and begins anew while the others wait" in output
    assert "lost rank" not in output, "another rank was restarted"
    assert output.count("note: ") == 1, output


def test_rank_0_is_replaced_with_its_files_and_its_reports(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    run = tmp_path / "run"
    job = Elastic.start(RANKS, tmp_path / "log", *RECOVER, f"run.dir={run}")
    until_checkpoint(job, run, 50)
    os.kill(children(job.workers()[0])[0], signal.SIGKILL)
    assert job.wait(LIMIT) == 0, job.output()
    assert fingerprint(run) == unbroken[0]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 24 + 1 + 4 + 1  # trained batches 0, 10, .., 239; validations; the test


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
