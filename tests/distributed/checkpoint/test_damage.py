"""Damaged or foreign checkpoints: the run goes on from the one before, or one line says why, and never wrongly."""

import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterflow.checkpoint.directory import block_file
from counterflow.checksum import sha256
from counterflow.engine.run_context import BlockError
from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import load_job
from counterflow.trainer.rank0 import ResumePoint, open_run_dir
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, configuration, summary_of, train_rank

OPTIONS = ("model.width=16", "blocks=4", "train.steps=12", "checkpoint.every=4", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def finished(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and its fingerprint."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, summary_of(pool, 1, *OPTIONS, directory=run)["fingerprint"]


@pytest.fixture
def broken(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The same run as it was after ten batches, with checkpoints after four and eight."""
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "batch-00000012")
    return run


def truncate(folder: Path) -> None:
    path = block_file(folder, 2)
    os.truncate(path, path.stat().st_size // 2)


def flip(folder: Path) -> None:
    path = block_file(folder, 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(key: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"block-0002.pt has \d+ bytes, \d+ were written"),
    "bit flipped": (flip, "block-0003.pt is not what was written"),
    "missing": (lambda folder: block_file(folder, 4).unlink(), "block-0004.pt: No such file or directory"),
    "a folder": (lambda folder: (block_file(folder, 1).unlink(), block_file(folder, 1).mkdir()), "block-0001.pt"),
    "never completed": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "empty manifest": (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json is damaged"),
    "no text": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\0"), "manifest.json is damaged"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 500), "manifest.json is damaged"),
    "deep": (lambda folder: (folder / "manifest.json").write_text("[" * 10**6), "manifest.json is damaged"),
    "huge": (lambda folder: os.truncate(folder / "manifest.json", 1 << 34), "manifest.json is damaged"),
    "no list": (edit("blocks", 7), "manifest.json is damaged"),
    "no sizes": (edit("blocks", [{}] * 4), "manifest.json is damaged"),
    "too few blocks": (edit("blocks", []), "manifest.json is damaged"),
    "unknown key": (edit("more", 1), "manifest.json is damaged"),
    "another place": (edit("batches", 4), "manifest.json is of the checkpoint after 4 batches"),
}


def opened(run: Path, *overrides: str, ranks: int = 1, log: Callable[[str], None] = lambda text: None) -> ResumePoint:
    """The start of a run in the directory ``run``, which is closed again."""
    config = configuration(*SMALL, *OPTIONS, *overrides)
    config = replace(config, run=replace(config.run, dir=str(run)))
    point = open_run_dir(load_job(config, RankInfo(size=ranks)), config, log)
    assert point.directory is not None
    point.directory.close()
    return point


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_passed_over(
    pool: Pool, finished: tuple[Path, str], broken: Path, damage: str
) -> None:
    action, reason = DAMAGES[damage]
    action(broken / "checkpoints" / "batch-00000008")
    lines: list[str] = []
    assert opened(broken, log=lines.append).batches == 4
    assert re.search(f"batch-00000008: is no whole checkpoint .*{reason}", lines[0])
    assert lines[1] == f"{broken}: goes on after batch 3 from {broken / 'checkpoints' / 'batch-00000004'}"
    if damage in ("truncated", "never completed"):
        resumed = summary_of(pool, 2, *OPTIONS, directory=broken)
        assert (resumed["resumed_after"], resumed["fingerprint"]) == (4, finished[1])


def test_without_a_whole_checkpoint_the_run_begins_anew(pool: Pool, finished: tuple[Path, str], broken: Path) -> None:
    for folder in (broken / "checkpoints").iterdir():
        flip(folder)
    resumed = summary_of(pool, 1, *OPTIONS, directory=broken)
    assert (resumed["resumed_after"], resumed["fingerprint"]) == (None, finished[1])
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows if row["event"] == "train"] == [0, 4, 8, 11]


def refused(run: Path, *overrides: str) -> str:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is compared
        opened(run, *overrides)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.lr=0.5", "optimizer.lr=0.001 there, 0.5 here"),
        ("seed=2", "seed=1 there, 2 here"),
        ("train.steps=13", "train.steps=12 there, 13 here"),
        ("engine.lag=3", "engine.lag=2 there, 3 here"),
    ],
)
def test_another_configuration_is_refused_by_what_differs(broken: Path, override: str, named: str) -> None:
    assert refused(broken, override) == f"run.dir={broken}: holds a run of another configuration: {named}"


def test_what_cannot_change_the_result_may_change(broken: Path) -> None:
    assert opened(broken, "engine.depth=5", "checkpoint.every=3", "train.log_every=1", ranks=3).batches == 8


def test_the_manifest_of_another_run_is_refused_by_what_differs(broken: Path) -> None:
    folder = broken / "checkpoints" / "batch-00000008"
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    edit("identity", {**identity, "optimizer.lr": 0.5})(folder)
    assert refused(broken) == f"run.resume: {folder} is of another configuration: optimizer.lr=0.5 there, 0.001 here"


@pytest.mark.parametrize(
    ("key", "there", "here"),
    [("engine.threads", 7, 1), ("device", "cuda", "cpu"), ("engine.precision", "bf16", "fp32"), ("data.root", "x", "")],
)
def test_what_auto_means_here_has_to_be_what_it_meant(broken: Path, key: str, there: object, here: object) -> None:
    folder = broken / "checkpoints" / "batch-00000008"
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    edit("identity", {**identity, key: there})(folder)
    assert f"{key}={there} there, {here}" in refused(broken)


def test_another_format_is_refused(broken: Path) -> None:
    path = broken / "checkpoints" / "batch-00000008"
    edit("format", 2)(path)
    assert refused(broken) == f"{path / 'manifest.json'}: is of format 2, this version of counterflow reads 1"


def test_another_version_of_torch_is_reported(broken: Path) -> None:
    folder = broken / "checkpoints" / "batch-00000008"
    versions = json.loads((folder / "manifest.json").read_text())["versions"]
    edit("versions", {**versions, "torch": "1.0"})(folder)
    lines: list[str] = []
    opened(broken, log=lines.append)
    assert lines[0].startswith(f"{folder} was computed with torch 1.0, here is {torch.__version__}: ")


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in one whose manifest agrees with it."""
    monkeypatch.chdir(tmp_path)
    folder = broken / "checkpoints" / "batch-00000008"
    content = io.BytesIO()
    torch.save({"rule": Malice()}, content)
    block_file(folder, 1).write_bytes(content.getvalue())
    blocks = json.loads((folder / "manifest.json").read_text())["blocks"]
    blocks[0] = {"nbytes": len(content.getvalue()), "sha256": sha256(block_file(folder, 1))}
    edit("blocks", blocks)(folder)
    with pytest.raises(BlockError, match=r"^rank 0: block 1: .*block-0001.pt: cannot be read \(UnpicklingError: "):
        train_rank(0, 1, "", configuration(*SMALL, *OPTIONS), 0.0, 0, broken)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malice()))
    assert (tmp_path / "executed").exists(), "this would have been malicious"


def test_the_state_of_another_network_is_refused(broken: Path) -> None:
    folder = broken / "checkpoints" / "batch-00000008"
    shutil.copy(block_file(folder, 3), block_file(folder, 1))
    blocks = json.loads((folder / "manifest.json").read_text())["blocks"]
    blocks[0] = blocks[2]
    edit("blocks", blocks)(folder)
    with pytest.raises(BlockError, match=r"^rank 0: block 1: Error\(s\) in loading state_dict"):
        train_rank(0, 1, "", configuration(*SMALL, *OPTIONS), 0.0, 0, broken)


def test_never_refuses_a_directory_that_holds_a_run(broken: Path) -> None:
    line = f"run.dir={broken}: already holds a run, which run.resume=auto would go on with"
    assert refused(broken, "run.resume=never") == line


def test_a_finished_run_is_refused(finished: tuple[Path, str]) -> None:
    line = f"run.dir={finished[0]}: already holds a finished run, choose another one or remove it"
    assert refused(finished[0]) == line


@pytest.mark.parametrize("named", ["checkpoints/batch-00000008", ""])
def test_a_new_run_goes_on_from_a_checkpoint_that_is_named(
    pool: Pool, finished: tuple[Path, str], broken: Path, tmp_path: Path, named: str
) -> None:
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    resumed = summary_of(pool, 2, *OPTIONS, f"run.resume={broken / named}", directory=tmp_path / "new")
    assert (resumed["resumed_after"], resumed["fingerprint"]) == (8, finished[1])
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("resume", "reason"),
    [
        ("/nowhere", "allowed are auto, never, the folder of a checkpoint or of a run that has one"),
        ("{broken}/checkpoints", "allowed are auto, never, the folder of a checkpoint or of a run that has one"),
        ("{broken}/checkpoints/batch-00000004", r"is no whole checkpoint \(block-0003.pt is not what was written\)"),
        ("{finished}/checkpoints/batch-00000012", "is of the end of a run, nothing is left of 12 batches"),
        ("{new}/checkpoints/batch-00000004", "is in run.dir=.*new, allowed there are auto, never"),
    ],
)
def test_what_cannot_be_gone_on_from_leaves_no_trace(
    finished: tuple[Path, str], broken: Path, tmp_path: Path, resume: str, reason: str
) -> None:
    flip(broken / "checkpoints" / "batch-00000004")
    new = tmp_path / "new"
    named = resume.format(broken=broken, finished=finished[0], new=new)
    with pytest.raises(ValueError, match=f"^run.resume.*{reason}$"):
        opened(new, f"run.resume={named}")
    assert not new.exists()
