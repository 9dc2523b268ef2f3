"""The programs as a user starts them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.launch import PROGRAM, Done, errors, forked, forked_torchrun, start, torchrun


def root_cause(done: Done) -> str:
    """Torchrun's summary, from the first rank that failed to the end."""
    return done.stderr.partition("Root Cause (first observed failure):")[2]


@pytest.mark.parametrize(
    ("launch", "options", "accuracy"),
    [(forked_torchrun, ("train.steps=300",), 0.95), pytest.param(torchrun, (), 0.97, marks=pytest.mark.slow)],
)
def test_the_default_run_learns_the_digits_on_four_processes(
    tmp_path: Path, launch: Callable[..., Done], options: tuple[str, ...], accuracy: float
) -> None:
    done = launch(4, "run.dir=here", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert summary["test_accuracy"] >= accuracy
    assert summary["ranks"] == summary["blocks"] == 4
    assert summary["seconds"] < 120
    assert f"test accuracy {summary['test_accuracy']:.4f}" in done.stdout
    assert "engine.threads=auto" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)
    assert {"train", "validation", "test"} == {row["event"] for row in rows}
    assert all(len(row["accuracy"]) == 4 for row in rows)
    names = {path.name.split(".")[0] for path in (tmp_path / "here").iterdir()}
    assert names == {"config", "metrics", "summary", "events", "checkpoints", "model", "readouts"}


def test_one_process_without_a_launcher_makes_a_run_folder(tmp_path: Path) -> None:
    done = start(PROGRAM, "train.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("bll-mlp-digits-")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 3
    assert (summary["experiment"], summary["scale"]) == (None, "full")
    for key in ("config_hash", "group_hash", "hardware", "python_version", "torch_version", "torchvision_version"):
        assert isinstance(summary[key], str)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("nonsense=1", "error: nonsense: no such key, allowed are seed, blocks, "),
        ("model=nonsense", "error: model=nonsense: allowed are al_cnn, al_mlp, al_vgg, cnn, custom, fastcnn, gpt, "),
        ("blocks=6", "error: blocks=6: must be at most 5, "),
        ("train.batch_size=1294", "error: train.batch_size=1294: must be at most 1293, "),
        ("data=fashion_mnist", "error: data.root=data: train-images-idx3-ubyte[.gz] is missing; "),
        ("engine.target_depth=1", "error: engine.target_depth=1: must be at least engine.lag=2, "),
        ("engine.backend=nccl", "error: engine.backend=nccl: needs device=cuda"),
    ],
)
def test_wrong_input_ends_in_one_line(tmp_path: Path, override: str, line: str) -> None:
    done = forked(PROGRAM, override, cwd=tmp_path)
    assert done.returncode == 2
    (printed,) = done.stderr.splitlines()
    assert printed.startswith(line)
    assert not list(tmp_path.iterdir())


def test_more_ranks_than_blocks_end_in_one_line_from_all_of_them_which_torchrun_repeats(tmp_path: Path) -> None:
    done = torchrun(2, "blocks=1", cwd=tmp_path)
    assert done.returncode != 0
    line = "ranks=2: must be between 1 and blocks=1, a rank owns at least one block"
    assert errors(done) == [f"error: {line}"]
    assert line in root_cause(done)
    assert "Traceback" not in done.stderr.partition("error: ")[0]


def test_exact_needs_one_process(tmp_path: Path) -> None:
    done = forked_torchrun(2, "engine.lag=exact", cwd=tmp_path)
    assert done.returncode != 0
    assert errors(done) == ["error: engine.lag=exact: the locked algorithm runs on one process, not on ranks=2"]


def test_a_run_is_not_written_over_another(tmp_path: Path) -> None:
    assert forked(PROGRAM, "train.steps=2", "run.dir=here", cwd=tmp_path).returncode == 0
    done = forked(PROGRAM, "train.steps=2", "run.dir=here", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: run.dir=here: already holds a finished run, choose another one or remove it\n"


def test_a_restart_after_the_last_file_has_nothing_to_do(tmp_path: Path) -> None:
    for restarts, note in (("0", ""), ("1", "note: here: has finished\n")):
        environment = {"TORCHELASTIC_RESTART_COUNT": restarts}
        done = forked(PROGRAM, "train.steps=2", "run.dir=here", cwd=tmp_path, environment=environment)
        assert (done.returncode, done.stderr) == (0, note)


def test_a_diverging_run_names_block_and_batch_and_so_does_torchrun(tmp_path: Path) -> None:
    diverge = ("optimizer=sgd", "optimizer.lr=1e6", "optimizer.weight_decay=1e6")
    done = forked_torchrun(2, *diverge, "run.dir=here", cwd=tmp_path)
    assert done.returncode != 0
    failed = [line for line in errors(done) if "FloatingPointError: the loss is nan" in line and ": block " in line]
    assert failed
    assert any(line.removeprefix("error: ") in done.stderr.partition("Failures:")[2] for line in failed)
    assert not (tmp_path / "here" / "summary.json").exists()
