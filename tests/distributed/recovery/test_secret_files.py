"""Wrong secrets in real jobs: every rank ends in time, with one line."""

from pathlib import Path

import pytest

from tests.helpers.kills import RECOVER
from tests.helpers.ports import free_port
from tests.helpers.processes import run_fresh, run_rank

ALLOWED = "allowed is a file with a secret of at least 16 bytes that its owner alone may read (mode 0600 or 0400)"


def run_with_secret(rank: int, ranks: int, store_path: str, port: int, files: list[str]) -> None:
    run_rank(
        rank,
        ranks,
        store_path,
        port,
        [*RECOVER, "run.dir=run", "engine.timeout=300", f"engine.secret_file={files[rank]}"],
    )


@pytest.mark.parametrize("second", ["another secret of the same length", None])
def test_ranks_with_different_secrets_end_with_one_line(tmp_path: Path, second: str | None) -> None:
    files = ["null" if second is None else str(tmp_path / "second"), str(tmp_path / "first")]
    for name, content in (("first", "a secret of more than 16 bytes"), ("second", second or "")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    ended = run_fresh(2, run_with_secret, free_port(), files, timeout=100)  # a third of engine.timeout
    line = "did not prove that it has the same secret: engine.secret_file has to hold the same on all ranks"
    assert [end.status for end in ended] == [1, 1]
    for rank, end in enumerate(ended):
        # The store is gone once rank 0 has ended, which rank 1 may notice first.
        lines = [f"error: rank {rank}: rank {1 - rank} {line}"]
        assert end.stderr.splitlines() == lines or (rank == 1 and "launcher's store" in end.stderr), ended


def test_a_file_that_others_may_read_is_refused_before_the_ranks_meet(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("a secret of more than 16 bytes")
    file.chmod(0o644)
    ended = run_fresh(2, run_with_secret, free_port(), [str(file)] * 2, timeout=100)
    assert [end.status for end in ended] == [2, 2]
    for end in ended:
        assert end.stderr == (
            f"error: engine.secret_file={file}: has mode 0644: group or others have access; {ALLOWED}\n"
        )
