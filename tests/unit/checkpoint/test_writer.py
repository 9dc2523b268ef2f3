import errno
import threading
from pathlib import Path

import pytest
import torch

from counterflow.checkpoint import BlockState, BlockWritten, CheckpointDirectory, CheckpointWriter
from counterflow.checkpoint.directory import block_file


def state(value: float) -> BlockState:
    return BlockState({"weight": torch.full((8,), value)})


def test_a_failure_is_reported_and_the_next_checkpoint_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[BlockWritten] = []

    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with CheckpointWriter(CheckpointDirectory(tmp_path), report=reports.append) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("counterflow.checkpoint.writer.atomic_write", full)
            writer.save(1, 4, state(1))
            writer.finish()
        writer.save(1, 8, state(2))
        writer.finish()
    assert [(written.batches, written.error) for written in reports] == [(4, "No space left on device"), (8, "")]
    assert block_file(CheckpointDirectory(tmp_path).folder(8), 1).stat().st_size == reports[1].nbytes


def test_its_thread_ends_with_it(tmp_path: Path) -> None:
    """It once freed tensors while the interpreter ended, which aborts the process."""
    with CheckpointWriter(CheckpointDirectory(tmp_path)) as writer:
        writer.save(1, 4, state(1))
        writer.finish()
        assert "checkpoint-writer" in {thread.name for thread in threading.enumerate()}
    assert "checkpoint-writer" not in {thread.name for thread in threading.enumerate()}


def test_what_is_saved_is_what_was_there_when_it_was_saved(tmp_path: Path) -> None:
    """Also where training changes it in place at once, and where one tensor stands for several batches."""
    weight, book = torch.zeros(8), torch.ones(4)
    with CheckpointWriter(CheckpointDirectory(tmp_path)) as writer:
        writer.save(1, 4, BlockState({"weight": weight}, targets={5: (book,), 6: (book,)}))
        weight.fill_(7.0)
        book.fill_(7.0)
        writer.finish()
    with CheckpointWriter(resume_from=CheckpointDirectory(tmp_path).folder(4)) as writer:
        restored = writer.restore(1)
    assert restored is not None
    assert torch.equal(restored.rule["weight"], torch.zeros(8))
    assert torch.equal(restored.targets[5][0], torch.ones(4))
    assert restored.targets[5][0] is restored.targets[6][0]


def test_without_a_directory_nothing_is_written_and_no_thread_starts() -> None:
    reports: list[BlockWritten] = []
    before = threading.active_count()
    with CheckpointWriter(report=reports.append) as writer:
        assert writer.restore(1) is None
        writer.save(1, 4, state(1))
        writer.finish()
        assert threading.active_count() == before
    assert not reports


def test_a_report_that_fails_is_raised_by_the_next_save(tmp_path: Path) -> None:
    """Found by killing the launcher's store: the thread ended with a traceback, and the run said nothing of it."""

    def report(written: BlockWritten) -> None:
        raise ReportError("no store")

    class ReportError(Exception):
        pass

    with CheckpointWriter(CheckpointDirectory(tmp_path), report=report) as writer:
        writer.save(1, 5, BlockState({}))
        with pytest.raises(ReportError, match="no store"):
            writer.save(1, 10, BlockState({}))
