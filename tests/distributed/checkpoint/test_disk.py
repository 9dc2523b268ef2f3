"""A disk that takes no more: training goes on, the last whole checkpoint stays, and somebody is told."""

import errno
import json
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch

from counterflow.checkpoint import BlockState, BlockWritten, CheckpointCommitter, CheckpointDirectory, CheckpointWriter
from counterflow.checkpoint.manifest import block_file
from counterflow.cli.hydra_app import load_config
from counterflow.engine.job import build_job
from counterflow.trainer.resume import open_run_dir
from tests.helpers.processes import CONF, Pool
from tests.helpers.runs import SMALL, summary_of, train_rank

CPU = torch.device("cpu")
OPTIONS = ("model.width=64", "blocks=4", "train.steps=12", "checkpoint.every=4", "checkpoint.keep=9")


def limited(rank: int, size: int, store_path: str, folder: Path, most: int) -> object:
    """A run that may write files of at most ``most`` bytes, as the kernel sees to; what it printed is lost."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        return train_rank(rank, size, store_path, [*SMALL, *OPTIONS], 0.0, 0, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_outlives_a_disk_without_room(pool: Pool, tmp_path: Path) -> None:
    expected = summary_of(pool, 2, *OPTIONS, directory=tmp_path / "whole")["fingerprint"]
    sizes = [path.stat().st_size for path in (tmp_path / "whole").glob("checkpoints/*/*.pt")]
    run = tmp_path / "run"
    summary = pool.run(2, limited, run, (min(sizes) + max(sizes)) // 2)[0]
    assert summary["fingerprint"] == expected
    assert not list(run.glob("checkpoints/*/manifest.json"))
    assert not list(run.glob("checkpoints/*/*.part"))
    assert list(run.glob("checkpoints/*/*.pt")), "smaller blocks have been written"


@pytest.mark.parametrize("path", ["/sys/counterflow", "/proc/counterflow", "/dev/null/run"])
def test_a_place_that_nobody_may_write(path: str) -> None:
    config = load_config(CONF, [*SMALL, *OPTIONS])
    with pytest.raises(ValueError, match=f"^run.dir={path}: must be a folder that can be written [^\n]+$"):
        open_run_dir(build_job(config, 1), Path(path), lambda text: None)


def test_checkpoints_that_have_no_folder(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    assert summary_of(pool, 2, *OPTIONS, directory=tmp_path / "run")["steps"] == 12
    assert (tmp_path / "run" / "checkpoints").read_text() == "in the way"


def state(value: float) -> BlockState:
    return BlockState({"weight": torch.full((8,), value)})


def test_a_failure_is_reported_and_the_next_checkpoint_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[BlockWritten] = []

    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with CheckpointWriter(CheckpointDirectory(tmp_path), None, CPU, reports.append, 30) as archive:
        with monkeypatch.context() as patch:
            patch.setattr("counterflow.checkpoint.writer.atomic_write", full)
            archive.save(1, 4, state(1))
            archive.finish()
        archive.save(1, 8, state(2))
        archive.finish()
    assert [(saved.batches, saved.error) for saved in reports] == [(4, "No space left on device"), (8, "")]
    assert block_file(CheckpointDirectory(tmp_path).folder(8), 1).stat().st_size == reports[1].nbytes


def test_its_thread_ends_with_it(tmp_path: Path) -> None:
    """It once freed tensors while the interpreter ended, which aborts the process."""
    with CheckpointWriter(CheckpointDirectory(tmp_path), None, CPU, lambda saved: None, 30) as archive:
        archive.save(1, 4, state(1))
        archive.finish()
        assert "archive" in {thread.name for thread in threading.enumerate()}
    assert "archive" not in {thread.name for thread in threading.enumerate()}


def test_what_is_saved_is_what_was_there_when_it_was_saved(tmp_path: Path) -> None:
    """Also where training changes it in place at once, and where one tensor stands for several batches."""
    weight, book = torch.zeros(8), torch.ones(4)
    with CheckpointWriter(CheckpointDirectory(tmp_path), None, CPU, lambda saved: None, 30) as archive:
        archive.save(1, 4, BlockState({"weight": weight}, targets={5: (book,), 6: (book,)}))
        weight.fill_(7.0)
        book.fill_(7.0)
        archive.finish()
    with CheckpointWriter(
        CheckpointDirectory(tmp_path), CheckpointDirectory(tmp_path).folder(4), CPU, lambda saved: None, 30
    ) as archive:
        restored = archive.restore(1)
    assert restored is not None
    assert torch.equal(restored.rule["weight"], torch.zeros(8))
    assert torch.equal(restored.targets[5][0], torch.ones(4))
    assert restored.targets[5][0] is restored.targets[6][0]


def ledger(folder: Path, told: list[str], keep: int = 2) -> CheckpointCommitter:
    return CheckpointCommitter(CheckpointDirectory(folder), keep, 100, {"seed": 1}, [1, 2], {"torch": "0"}, told.append)


def saved(folder: Path, batches: int, block: int, error: str = "") -> BlockWritten:
    path = block_file(CheckpointDirectory(folder).folder(batches), block)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    return BlockWritten(batches, block, 7, "digest", error)


def test_the_manifest_comes_when_all_blocks_are_there(tmp_path: Path) -> None:
    told: list[str] = []
    account = ledger(tmp_path, told)
    account.add(saved(tmp_path, 10, 2))
    account.add(saved(tmp_path, 20, 2))  # one block may be a checkpoint ahead
    assert not list(tmp_path.glob("*/manifest.json"))
    account.add(saved(tmp_path, 10, 1))
    content = json.loads((CheckpointDirectory(tmp_path).folder(10) / "manifest.json").read_text())
    assert (content["batches"], content["cut"], content["identity"]) == (10, [1, 2], {"seed": 1})
    assert content["blocks"] == [{"nbytes": 7, "sha256": "digest"}] * 2
    assert not told


def test_a_checkpoint_without_one_of_its_blocks_never_counts(tmp_path: Path) -> None:
    told: list[str] = []
    account = ledger(tmp_path, told)
    account.add(saved(tmp_path, 10, 1))
    account.add(saved(tmp_path, 10, 2, "No space left on device"))
    (line,) = told
    assert line.startswith("no checkpoint after batch 9: block 2: No space left on device; training goes on")
    assert not list(tmp_path.glob("*/manifest.json"))


def test_the_newest_are_kept_and_the_last_one_costs_none_before_the_end(tmp_path: Path) -> None:
    account = ledger(tmp_path, [])
    (tmp_path / "notes").mkdir()
    saved(tmp_path, 5, 1)  # never completed
    for batches in (10, 20, 30):
        for block in (1, 2):
            account.add(saved(tmp_path, batches, block))
    assert [folder.name for folder in CheckpointDirectory(tmp_path).folders()] == ["batch-00000030", "batch-00000020"]
    saved(tmp_path, 40, 1)  # half written
    for block in (1, 2):
        account.add(saved(tmp_path, 100, block))
    names = ["batch-00000100", "batch-00000040", "batch-00000030", "batch-00000020"]
    assert [folder.name for folder in CheckpointDirectory(tmp_path).folders()] == names, "the run has not finished"
    account.finish()
    assert [folder.name for folder in CheckpointDirectory(tmp_path).folders()] == [
        "batch-00000100",
        "batch-00000040",
        "batch-00000030",
    ]
    assert (tmp_path / "notes").exists()
