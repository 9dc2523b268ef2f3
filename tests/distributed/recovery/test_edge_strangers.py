"""Strangers on the sockets of a run with a secret: none enters, and nothing stops."""

import random
from contextlib import ExitStack
from pathlib import Path

from counterflow.transport.handshake import MAX_HANDSHAKES
from tests.helpers.edge_strangers import EDGES, SECRET, GuardedJob, attempts, let_in
from tests.helpers.ports import open_files

COUNT = 32


def test_strangers_of_a_run_with_a_secret_change_nothing(tmp_path: Path, unbroken: tuple[str, float]) -> None:
    with ExitStack() as stay, GuardedJob(tmp_path) as job:
        known = job.known()
        assert len(known.heard) == len(EDGES)
        answers = attempts(COUNT, job.addresses(known), known, random.Random(0), stay)
        trainers = job.trainers()
        assert len(trainers) == 4, "the run was over before the strangers had gone"
        assert all(open_files(pid) < 100 + 2 * MAX_HANDSHAKES for pid in trainers)
        assert len(answers) == COUNT
        assert not let_in(answers)
        fingerprint = job.finish(90)
        assert job.run.texts() == [""] * 4
        assert SECRET not in "".join(job.run.text(rank, "out") for rank in range(4))
        written = b"".join(path.read_bytes() for path in job.folder.rglob("*") if path.is_file())
        assert SECRET.encode() not in written
    assert fingerprint == unbroken[0]
