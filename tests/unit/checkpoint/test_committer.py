import json
from pathlib import Path

import pytest

from counterflow.checkpoint import BlockWritten, CheckpointCommitter, CheckpointDirectory, ManifestHeader
from counterflow.checkpoint.directory import block_file


def committer(folder: Path, commits: list[int] | None = None) -> CheckpointCommitter:
    header = ManifestHeader({"seed": 1}, [1, 2], {"torch": "0"})
    on_commit = commits.append if commits is not None else lambda batches: None
    return CheckpointCommitter(CheckpointDirectory(folder), header, keep=2, batches=100, on_commit=on_commit)


def written(folder: Path, batches: int, block: int, error: str = "") -> BlockWritten:
    path = block_file(CheckpointDirectory(folder).folder(batches), block)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    return BlockWritten(batches, block, 7, "digest", error)


def names_of(path: Path) -> list[str]:
    return [folder.name for _, folder in CheckpointDirectory(path).folders()]


def test_the_manifest_comes_when_all_blocks_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit = committer(tmp_path)
    commit.add(written(tmp_path, 10, 2))
    commit.add(written(tmp_path, 20, 2))  # one block may be a checkpoint ahead
    assert not list(tmp_path.glob("*/manifest.json"))
    commit.add(written(tmp_path, 10, 1))
    content = json.loads((CheckpointDirectory(tmp_path).folder(10) / "manifest.json").read_text())
    assert (content["batches"], content["cut"], content["identity"]) == (10, [1, 2], {"seed": 1})
    assert content["blocks"] == [{"nbytes": 7, "sha256": "digest"}] * 2
    assert not caplog.records


def test_a_checkpoint_without_one_of_its_blocks_never_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit = committer(tmp_path)
    commit.add(written(tmp_path, 10, 1))
    commit.add(written(tmp_path, 10, 2, "No space left on device"))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "no checkpoint after batch 9: block 2: No space left on device; training goes on"
    )
    assert not list(tmp_path.glob("*/manifest.json"))


def test_the_newest_are_kept_and_the_last_one_costs_none_before_the_end(tmp_path: Path) -> None:
    commits: list[int] = []
    commit = committer(tmp_path, commits)
    (tmp_path / "notes").mkdir()
    written(tmp_path, 5, 1)  # never completed
    for batches in (10, 20, 30):
        for block in (1, 2):
            commit.add(written(tmp_path, batches, block))
    assert names_of(tmp_path) == [
        "batch-00000030",
        "batch-00000020",
    ]
    written(tmp_path, 40, 1)  # half written
    for block in (1, 2):
        commit.add(written(tmp_path, 100, block))
    assert commits == [10, 20, 30]
    names = ["batch-00000100", "batch-00000040", "batch-00000030", "batch-00000020"]
    assert names_of(tmp_path) == names, "the run has not finished"
    commit.finish()
    assert names_of(tmp_path) == [
        "batch-00000100",
        "batch-00000040",
        "batch-00000030",
    ]
    assert (tmp_path / "notes").exists()
