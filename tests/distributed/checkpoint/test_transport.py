"""Checkpoints that rank 0 writes for all, of a run that a signal ends; on one machine, where all could write."""

import os
import signal
from pathlib import Path

from counterflow.checkpoint import CheckpointDirectory
from tests.helpers.elastic import Elastic
from tests.helpers.kills import JOB, LIMIT, fingerprint, unbroken_run, until

LONGER = (*JOB, "train.steps=480", "train.evaluate_every=0", "checkpoint.best=false")
GATHER = (*LONGER, "checkpoint.transport=gather")


def test_a_signal_ends_it_with_a_checkpoint_that_other_ranks_resume(tmp_path: Path) -> None:
    expected, _ = unbroken_run(tmp_path, "unbroken", *LONGER, ranks=1)
    run = tmp_path / "run"
    job = Elastic.start(4, tmp_path / "log", *GATHER, "checkpoint.every=450", f"run.dir={run}")
    metrics = run / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size, job)  # it trains
    os.kill(job.workers()[2], signal.SIGTERM)
    job.wait(LIMIT)
    found = CheckpointDirectory(run / "checkpoints").latest(480, print)
    assert found is not None, job.output()
    assert found[1].batches < 450, "it is that of the signal"
    again = Elastic.start(3, tmp_path / "again", *GATHER, f"run.dir={run}")
    assert again.wait(LIMIT) == 0, again.output()
    assert f"goes on after batch {found[1].batches - 1} " in again.output()
    assert fingerprint(run) == expected
