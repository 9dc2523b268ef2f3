"""Sweeps: many runs of one command, one after the other in one process."""

import gc
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from counterflow.cli.hydra_app import load_config
from counterflow.cli.sweep import Sweep
from counterflow.cli.train import run_job
from counterflow.config import TrainConfig
from counterflow.engine.run_context import BlockError
from tests.helpers.launch import PROGRAM, STAGES, errors, forked, forked_torchrun, running

QUICK = ("train.steps=3", "run.display=false")


def files(folder: Path) -> set[str]:
    """All files below, with what a run leaves as one."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    runs = {str(path.parent if path.name != "multirun.yaml" else path) for path in found}
    return {run for run in runs if "checkpoints" not in run}


def summary(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "summary.json").read_text())
    assert isinstance(content, dict)
    return content


def test_an_experiment_is_one_command_that_skips_what_has_finished(tmp_path: Path) -> None:
    """And a run inside a sweep gives the bits that it gives alone."""
    command = (PROGRAM, "experiment=table1", "scale=smoke", "algorithm=fa,bll", "run.display=false")
    done = forked(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = [f"runs/table1-smoke/algorithm={algorithm},seed=1" for algorithm in ("fa", "bll")]
    assert done.stdout.splitlines() == [
        *(f"{job}: begins" for job in jobs),
        "sweep of 2 runs: 2 ran, 0 skipped, 0 failed",
    ]
    assert files(tmp_path) == {*jobs, "runs/table1-smoke/multirun.yaml"}
    before = summary(tmp_path / jobs[1])
    assert (before["experiment"], before["scale"], before["algorithm"]) == ("table1", "smoke", "bll")

    again = forked(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == [
        *(f"{job}: has finished, skipped" for job in jobs),
        "sweep of 2 runs: 0 ran, 2 skipped, 0 failed",
    ]
    assert summary(tmp_path / jobs[1]) == before

    alone = (PROGRAM, "experiment=table1", "scale=smoke", "algorithm=bll", "run.dir=alone", "hydra.mode=RUN")
    done = forked(*alone, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "alone")["fingerprint"] == before["fingerprint"]
    assert summary(tmp_path / "alone")["config_hash"] == before["config_hash"]


@pytest.mark.slow
def test_interrupted_runs_begin_anew_and_those_of_another_configuration_are_refused(tmp_path: Path) -> None:
    command = (PROGRAM, "-m", "seed=1,2,3", "run.dir=here", *QUICK)
    assert forked(*command, cwd=tmp_path).returncode == 0
    jobs = [tmp_path / "here" / f"seed={seed},train.steps=3" for seed in (1, 2, 3)]
    fingerprint = summary(jobs[0])["fingerprint"]
    (jobs[0] / "summary.json").unlink()
    (jobs[1] / "config.yaml").write_text((jobs[1] / "config.yaml").read_text().replace("blocks: 4", "blocks: 2"))
    before = (jobs[1] / "metrics.jsonl").read_bytes()

    done = forked(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "here/seed=1,train.steps=3: begins",
        "here/seed=3,train.steps=3: has finished, skipped",
        "sweep of 3 runs: 1 ran, 1 skipped, 1 failed",
    ]
    assert done.stderr.splitlines() == [
        "note: here/seed=1,train.steps=3: was interrupted before its first checkpoint, begins anew",
        "error: seed=2,train.steps=3: run.dir=here/seed=2,train.steps=3: holds a run of another configuration: "
        "blocks=2 there, 4 here",
    ]
    assert summary(jobs[0])["fingerprint"] == fingerprint
    assert (jobs[1] / "metrics.jsonl").read_bytes() == before


def test_a_job_that_fails_is_not_the_end_of_the_others(tmp_path: Path) -> None:
    done = forked(
        PROGRAM, "-m", "optimizer=sgd", "optimizer.lr=1e6,0.1", "model.norm=none", "blocks=4,6", "train.steps=20",
        "run.display=false", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    diverged, *wide = errors(done)
    assert "FloatingPointError: the loss is nan" in diverged
    assert diverged.startswith(
        "error: blocks=4,model.norm=none,optimizer.lr=1000000.0,optimizer=sgd,train.steps=20: rank 0: "
    )
    assert len(wide) == 2
    assert all("blocks=6: must be at most 5" in line for line in wide)
    assert len(done.stderr.splitlines()) == 3
    assert done.stdout.splitlines()[-1] == "sweep of 4 runs: 1 ran, 0 skipped, 3 failed"
    folder = tmp_path / "runs" / "multirun-full"
    assert summary(folder / "blocks=4,model.norm=none,optimizer.lr=0.1,optimizer=sgd,train.steps=20")["steps"] == 20


def test_an_interrupt_ends_the_whole_sweep(tmp_path: Path) -> None:
    command = (PROGRAM, "-m", "seed=1,2,3", "train.epochs=1000", "run.display=false", "run.dir=here")
    begins = "here/seed=1,train.epochs=1000: begins\n"
    with running(*command, cwd=tmp_path) as sweep:
        while sweep.text(0, "out") != begins:
            assert sweep.poll(0.01), sweep.texts()
            assert time.monotonic() - sweep.started < 60, sweep.texts()
        os.kill(sweep.pids[0], signal.SIGINT)
        (ended,) = sweep.wait(90)
    assert ended.status == 128 + signal.SIGINT
    assert ended.stdout == begins


@pytest.mark.parametrize(
    "sweep", [("experiment=table1", "scale=smoke"), pytest.param(("-m", "seed=1,2"), marks=pytest.mark.slow)]
)
def test_a_sweep_under_torchrun_is_refused_before_anything_is_written(tmp_path: Path, sweep: tuple[str, ...]) -> None:
    done = forked_torchrun(2, *sweep, cwd=tmp_path)
    assert done.returncode != 0
    (line,) = errors(done)
    assert line.startswith("error: a sweep runs on one process: python launch/train.py ")
    assert "hydra.mode=RUN" in line
    assert not list(tmp_path.iterdir())


def test_one_experiment_a_command(tmp_path: Path) -> None:
    done = forked(PROGRAM, "-m", "experiment=table1,fig3b", "scale=smoke", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: experiment=table1,fig3b: one experiment a command")
    assert not list(tmp_path.iterdir())


def test_a_stage_begins_nothing_after_its_time(tmp_path: Path) -> None:
    done = forked(STAGES, "--minutes", "0", "--", "seed=1,2", *QUICK, cwd=tmp_path)
    assert done.returncode == 75
    assert done.stdout.splitlines() == [
        *(f"runs/multirun-full/seed={seed},train.steps=3: remains" for seed in (1, 2)),
        "sweep of 2 runs: 0 ran, 0 skipped, 0 failed, 2 remain",
    ]
    assert files(tmp_path) == {"runs/multirun-full/multirun.yaml"}


@pytest.fixture
def fingerprint(tmp_path: Path):  # type: ignore[no-untyped-def]  # a function of overrides
    def of(name: str, *overrides: str) -> object:
        options = [*QUICK, "model.dropout=0.2", "engine.threads=1", f"run.dir={tmp_path / name}"]
        run_job(load_config([*options, *overrides]))
        return summary(tmp_path / name)["fingerprint"]

    return of


def test_runs_leave_each_other_alone(fingerprint) -> None:  # type: ignore[no-untyped-def]
    """Neither what went before, with other seeds and rules, nor what failed before changes a bit, or stays behind."""
    alone = fingerprint("alone", "seed=2")
    gc.collect()
    threads, handles = threading.enumerate(), len(os.listdir("/proc/self/fd"))
    for algorithm in ("bp", "al"):
        fingerprint(algorithm, f"algorithm={algorithm}", "seed=1", "blocks=2")
    for algorithm in ("bp", "bll"):
        with pytest.raises(BlockError):
            fingerprint(f"{algorithm} fails", f"algorithm={algorithm}", "optimizer=sgd", "optimizer.lr=1e6",
                        "optimizer.weight_decay=1e6", "train.steps=20")  # fmt: skip
    assert fingerprint("after", "seed=2") == alone
    gc.collect()
    assert threading.enumerate() == threads
    assert len(os.listdir("/proc/self/fd")) == handles


def test_a_stage_begins_no_run_that_would_outlast_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs of 40 s in a stage of 100: two end within it, and the third would not."""
    clock = [0.0]

    def run(config: TrainConfig, callback: object) -> None:
        clock[0] += 40.0

    monkeypatch.setattr("counterflow.cli.sweep.time.monotonic", lambda: clock[0])
    sweep = Sweep(run, ends=100.0)
    for name in "abc":
        sweep.job(name, tmp_path / name, lambda: load_config(["checkpoint.every=0"]))
    assert (sweep.counts["ran"], sweep.counts["remaining"], sweep.status) == (2, 1, 75)


@pytest.mark.slow
def test_a_stage_that_ends_leaves_a_checkpoint(tmp_path: Path) -> None:
    options = ("seed=1,2", "train.epochs=100000", "checkpoint.every=50", "run.display=false", "run.dir=here")
    for again in (False, True):
        done = forked(STAGES, "--minutes", "0.15", "--", *options, cwd=tmp_path)
        assert done.returncode == 75, done.stderr
        begins, *rest = done.stdout.splitlines()
        assert begins == f"here/seed=1,train.epochs=100000: {'goes on' if again else 'begins'}"
        assert rest == [
            "here/seed=1,train.epochs=100000: remains",
            "here/seed=2,train.epochs=100000: remains",
            "sweep of 2 runs: 0 ran, 0 skipped, 0 failed, 2 remain",
        ]
    (line,) = done.stderr.splitlines()
    assert "goes on after batch" in line


@pytest.mark.slow
def test_stages_of_several_experiments(tmp_path: Path) -> None:
    done = forked(STAGES, "--minutes", "0", "--", "experiment=fig3b,heads", "scale=smoke", cwd=tmp_path)
    assert done.returncode == 75
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("sweep")] == [
        "sweep of 2 runs: 0 ran, 0 skipped, 0 failed, 2 remain",
        "sweep of 4 runs: 0 ran, 0 skipped, 0 failed, 4 remain",
    ]
    assert len([line for line in lines if line.endswith(": remains")]) == 6
