"""Restart-invariance (docs/concepts.md, Semantics): killed anywhere and resumed, the same bits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

MODEL = ("model.width=16", "model.hidden=6", "model.norm=batch", "model.dropout=0.1", "blocks=4")
FAST = ("model=fastcnn", "model.widths=[6,8,8]", "algorithm.head.width=4", "blocks=4")
PIPELINED = {"schedule=1f1b", "schedule=gpipe"}
ASYNCHRONOUS = {"schedule=naive", "schedule=pipedream"}
OFTEN = ("train.steps=14", "train.evaluate_every=5", "train.log_every=2", "checkpoint.every=4", "checkpoint.keep=9")


def interrupt(run: Path, batches: int) -> None:
    """Leave ``run`` as it was when it was killed some time after the checkpoint that follows ``batches`` batches."""
    (run / "summary.json").unlink()
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("batch-")) > batches:
            shutil.rmtree(folder)


def figures(run: Path) -> list[dict[str, Any]]:
    """Metrics without times, and without those that one process alone can measure."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "wait_fraction", "update_error")} for row in rows]


def check(pool: Pool, folder: Path, before: int, after: int, batches: int, *overrides: str) -> None:
    options = (*OFTEN, *(overrides if overrides == FAST else (*MODEL, *overrides)))
    unbroken = summary_of(pool, before, *options, directory=folder / "unbroken")
    assert unbroken["resumed_after"] is None
    several = before if PIPELINED.intersection(overrides) else 1  # all others have the bits of one process
    assert unbroken["fingerprint"] == summary_of(pool, several, *options, "checkpoint.every=0")["fingerprint"]
    shutil.copytree(folder / "unbroken", folder / "broken")
    interrupt(folder / "broken", batches)
    resumed = summary_of(pool, after, *options, directory=folder / "broken")
    assert resumed["resumed_after"] == batches
    assert resumed["fingerprint"] == unbroken["fingerprint"]
    assert resumed["block_accuracy"] == unbroken["block_accuracy"]
    there, here = figures(folder / "unbroken"), figures(folder / "broken")
    if ASYNCHRONOUS.intersection(overrides):  # their blocks report a batch at different times: no row straddles the cut
        assert here == [row for row in there if row in here]
        assert all(row["event"] == "train" and batches - 6 <= row["n"] < batches for row in there if row not in here)
    else:
        assert here == there


RULES = {
    "bll": ("algorithm=bll", "algorithm.feedback.refresh=3"),
    "bll, long lag": ("algorithm=bll", "engine.lag=5", "optimizer=sgd"),
    "al": ("algorithm=al", "optimizer=muon", "optimizer.average=0.9"),
    "predsim": ("algorithm=predsim", "algorithm.similarity=layer", "algorithm.smoothing=0.1", "engine.lag=1"),
    "naive": ("algorithm=bp", "schedule=naive", "optimizer.average=0.9"),
    "pipedream": ("algorithm=bp", "schedule=pipedream", "optimizer.average=0.9", "optimizer.delay_corrected=true"),
    "pipedream, lag 1": (
        *("algorithm=bp", "schedule=pipedream", "engine.lag=1", "engine.recompute=true"),
        *("optimizer=sgd", "optimizer.delay_corrected=true"),
    ),
    "muon": ("algorithm=bll", "optimizer=muon", "optimizer.bias_lr_scale=4"),
    "average": ("algorithm=bll", "optimizer.average=0.9"),
}


@pytest.mark.parametrize("rule", RULES)
def test_resumed_with_another_number_of_processes_the_bits_are_the_same(pool: Pool, tmp_path: Path, rule: str) -> None:
    check(pool, tmp_path, 3, 2, 8, *RULES[rule])


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 4), (4, 1), (4, 3), (1, 4), (2, 3)])
def test_resumed_with_any_number_of_processes_the_bits_are_the_same(
    pool: Pool, tmp_path: Path, rule: str, before: int, after: int
) -> None:
    check(pool, tmp_path, before, after, 8, *RULES[rule])


@pytest.mark.parametrize("batches", [4, 12])
def test_while_the_blocks_fill_and_while_they_drain(pool: Pool, tmp_path: Path, batches: int) -> None:
    check(pool, tmp_path, 3, 2, batches, "engine.lag=3")


def test_what_came_from_training_samples_comes_back(pool: Pool, tmp_path: Path) -> None:
    check(pool, tmp_path, 3, 2, 8, *FAST)


def test_the_locked_algorithm_too(pool: Pool, tmp_path: Path) -> None:
    check(pool, tmp_path, 1, 1, 8, "engine.lag=exact")


@pytest.mark.parametrize(
    ("algorithm", "schedule", "average"), [("bp", "1f1b", 0.0), ("bp", "gpipe", 0.9), ("fa", "gpipe", 0.0)]
)
def test_schedules_with_a_backward_lock_too(
    pool: Pool, tmp_path: Path, algorithm: str, schedule: str, average: float
) -> None:
    options = (f"algorithm={algorithm}", f"schedule={schedule}", f"optimizer.average={average}")
    check(pool, tmp_path, 2, 2, 8, *options, "model.norm=layer")


def test_a_profiled_cut_is_not_measured_again(pool: Pool, tmp_path: Path) -> None:
    options = (*MODEL, *OFTEN, "model.cut=profile")
    unbroken = summary_of(pool, 2, *options, directory=tmp_path / "run")
    interrupt(tmp_path / "run", 8)
    resumed = summary_of(pool, 1, *options, directory=tmp_path / "run")
    assert (resumed["cut"], resumed["fingerprint"]) == (unbroken["cut"], unbroken["fingerprint"])
