"""Hundreds of strangers on the sockets of a run with a secret, while ranks are killed and replaced."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from counterflow.transport.handshake import MAX_HANDSHAKES
from tests.helpers.edge_strangers import SECRET, GuardedJob, attempts, let_in
from tests.helpers.elastic import Elastic
from tests.helpers.kills import JOB, fingerprint
from tests.helpers.ports import open_files

COUNT = 500
ROUNDS = 10
KILLS = {3: 1, 6: 2}
"""Rank that is killed at the start of a round."""
SEED = int(os.environ.get("COUNTERFLOW_SEED", "0"))
LONG = ("train.steps=6000", "train.evaluate_every=2000", "checkpoint.every=100")
LIMIT = 600.0
"""Seconds."""


@pytest.mark.timeout(1500)
def test_hundreds_of_strangers_change_nothing(tmp_path: Path) -> None:
    answers: list[tuple[str, bytes]] = []
    with ExitStack() as stay, GuardedJob(tmp_path, *LONG) as job:
        known, draw, most = job.known(), random.Random(SEED), 0
        before = max(map(open_files, job.trainers()))
        for round_ in range(ROUNDS):
            if round_ in KILLS:
                while not list(job.folder.glob("checkpoints/*/manifest.json")):
                    time.sleep(0.01)
                os.kill(job.trainers()[KILLS[round_]], signal.SIGKILL)
            answers += attempts(COUNT // ROUNDS, job.addresses(known), known, draw, stay)
            most = max(most, *map(open_files, job.trainers()))
            time.sleep(0.5)
        # A listener that is gone, with its rank, counts as no attempt: more of them make up for it.
        answers += attempts(COUNT - len(answers), job.addresses(known), known, draw, stay)
        assert len(job.trainers()) == 4, "the run was over before the strangers had gone"
        assert len(answers) == COUNT
        assert not let_in(answers)
        print(f"{dict(Counter(name for name, _ in answers))}; {before} open files of a rank, at most {most}")
        assert most < before + 3 * MAX_HANDSHAKES + 20, "each rank has three listeners or fewer"
        found = job.finish(LIMIT)
        texts = job.run.texts()
        assert [text.count("begins anew") for text in texts] == [0, 1, 1, 0], texts
        assert all(len(text.splitlines()) <= 1 for text in texts), texts
        written = b"".join(path.read_bytes() for path in job.folder.rglob("*") if path.is_file())
        assert SECRET.encode() not in written
    alone = Elastic.start(2, tmp_path / "log", *JOB, *LONG, f"run.dir={tmp_path / 'run'}")
    assert alone.wait(LIMIT) == 0, alone.output()
    assert found == fingerprint(tmp_path / "run")
