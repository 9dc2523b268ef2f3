"""``checkpoint.best``: the weights of the best evaluation, on any number of processes and over restarts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import counterflow as cf
from tests.distributed.trainer.test_trainer import data, network
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks

RULES: dict[str, Any] = {"bll": cf.BLL, "al": lambda: cf.AL(dim=12), "bp": cf.Backprop, "fa": cf.FeedbackAlignment}
RATES = {"bll": 0.3, "al": 0.1, "bp": 1.0, "fa": 0.3}
"""So large that the last evaluation is not the best."""
EVERY, STEPS = 3, 18


def fit(rule: str, run: str = "", steps: int = STEPS) -> dict[str, Any]:
    """Result of one rank after a small fit, which leaves something if it has a folder."""
    trainer = cf.Trainer(
        network,
        rule=RULES[rule](),
        optimizer=cf.AdamW(lr=RATES[rule], schedule="constant", average=0.5),
        blocks=3,
        engine=cf.EngineConfig(threads=1, timeout=30),
    )
    files: dict[str, Any] = {}
    if run:
        files = {"run_dir": run, "checkpoint": cf.CheckpointConfig(every=5, keep=9, best=True)}
    result = trainer.fit(
        data(), epochs=9, steps=steps, batch_size=16, validation=0.4, evaluate_every=EVERY, log_every=100, **files
    )
    return {"summary": dict(result.summary), "state": result.state_dict() if result.is_main else {}}


def accuracies(run: Path) -> dict[int, float]:
    """Validation accuracy of the network by the batches before it."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["n"] + 1: row["accuracy"][-1] for row in rows if row["event"] == "validation"}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


CASES = [("bll", 1), ("bll", 2), ("bll", 3), ("al", 3), ("bp", 1), ("bp", 2), ("bp", 3), ("fa", 1)]


@pytest.mark.parametrize(("rule", "ranks"), CASES)
def test_they_are_those_of_a_run_that_ends_there(pool: Pool, tmp_path: Path, rule: str, ranks: int) -> None:
    run = tmp_path / "run"
    summary = on_ranks(pool, ranks, fit, rule, str(run))[0]["summary"]
    found = accuracies(run)
    assert list(found) == [*range(EVERY, STEPS + 1, EVERY)]
    steps = min(found, key=lambda batches: (-found[batches], batches))
    assert (summary["best_steps"], summary["best_validation_accuracy"]) == (steps, found[steps])
    assert steps < STEPS, "the last one would be no test"
    there = on_ranks(pool, 1 if rule in ("bll", "al") else ranks, fit, rule, "", steps)[0]
    assert_same(load_file(run / "best.safetensors"), there["state"])
    assert not (run / "evaluated").exists()


@pytest.mark.parametrize("batches", [10, 15])
def test_a_run_that_goes_on_keeps_the_same(pool: Pool, tmp_path: Path, batches: int) -> None:
    """It was interrupted some time after a checkpoint, when nothing had been compared, or all."""
    whole = on_ranks(pool, 3, fit, "bll", str(tmp_path / "whole"))[0]["summary"]
    for judged in (False, True):
        run = tmp_path / f"run {judged}"
        shutil.copytree(tmp_path / "whole", run)
        for name in ("summary.json", "best.safetensors"):
            (run / name).unlink()
        for folder in (run / "checkpoints").iterdir():
            if int(folder.name.removeprefix("batch-")) > batches:
                shutil.rmtree(folder)
        found = {steps: value for steps, value in accuracies(run).items() if steps <= batches}
        kept = [min(found, key=lambda steps: (-found[steps], steps))] if judged else list(found)
        for steps in kept:
            write_blocks(run / "evaluated" / f"batch-{steps:08}", fit("bll", "", steps)["state"])
        again = on_ranks(pool, 2, fit, "bll", str(run))[0]["summary"]
        assert again["resumed_after"] == batches
        assert again["best_steps"] == whole["best_steps"]
        assert_same(load_file(run / "best.safetensors"), load_file(tmp_path / "whole" / "best.safetensors"))


def write_blocks(folder: Path, state: dict[str, Tensor]) -> None:
    """As three blocks write them; which parameters are in which file does not matter."""
    folder.mkdir(parents=True)
    names = list(state)
    for block in (1, 2, 3):
        torch.save({name: state[name] for name in names[block - 1 :: 3]}, folder / f"block-{block:04}.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate_every": 3}, "checkpoint.best=true: needs data.validation and train.evaluate_every greater than 0"),
        ({"validation": 0.1}, "checkpoint.best=true: needs data.validation and train.evaluate_every greater than 0"),
        ({"validation": 0.1, "evaluate_every": 3, "run_dir": None}, "checkpoint.best=True: needs run_dir"),
    ],
)
def test_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"run_dir": tmp_path / "run", "checkpoint": cf.CheckpointConfig(best=True), **options}
    with pytest.raises(ValueError, match=f"^{message}"):
        cf.Trainer(network, blocks=2).fit(data(), **given)


def test_refused_where_rows_are_not_whole_at_a_checkpoint(tmp_path: Path) -> None:
    trainer = cf.Trainer(network, rule=cf.Backprop(), blocks=2, schedule="naive")
    checkpoint = cf.CheckpointConfig(best=True)
    with pytest.raises(
        ValueError, match=r"^checkpoint\.best=true: is for all values of schedule but naive and pipedream$"
    ):
        trainer.fit(data(), run_dir=tmp_path, checkpoint=checkpoint, validation=0.1, evaluate_every=3)
