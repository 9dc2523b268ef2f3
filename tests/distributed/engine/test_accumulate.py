"""Parts of a batch under local rules: one update a batch, for any number of processes and after any restart."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import counterflow as cf
from counterflow.engine.stage import Stage
from counterflow.trainer.job_builder import load_job
from tests.distributed.engine.test_resume import interrupt
from tests.helpers.configs import configured
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

RULES = {
    "bll": ("algorithm.feedback.refresh=2",),
    "predsim": ("algorithm=predsim", "algorithm.beta=0.5"),
    "al": ("algorithm=al", "algorithm.dim=12"),
}
NETWORK = ("model=mlp", "model.width=24", "model.hidden=3", "model.dropout=0.2")
LENGTH = ("train.batch_size=24", "train.steps=12", "data.validation=0.1", "train.evaluate_every=5")
RESULTS = ("fingerprint", "test_accuracy", "block_accuracy", "validation_block_accuracy")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(pool: Pool) -> Run:
    """The summary of a small run whose dropout and batch norm see parts."""

    def summary(rule: str, ranks: int, *more: str, **how: Any) -> dict[str, Any]:
        return summary_of(pool, ranks, *NETWORK, *LENGTH, "model.norm=batch", "blocks=4", *RULES[rule], *more, **how)

    return cache(summary)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, 24), *(nn.Sequential(nn.ReLU(), nn.Linear(24, 24)) for _ in range(2)), nn.Linear(24, 3)
    )


def data(samples: int) -> TensorDataset:
    numbers = torch.randn(samples, 10, generator=torch.Generator().manual_seed(0))
    return TensorDataset(numbers, torch.arange(samples) % 3)


def results(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in RESULTS}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_processes_change_nothing(run: Run, rule: str, ranks: int) -> None:
    parts = ("train.accumulate=3",)
    assert results(run(rule, ranks, *parts)) == results(run(rule, 1, *parts))
    assert run(rule, 1, *parts)["fingerprint"] != run(rule, 1)["fingerprint"], "batch norm and dropout see parts"


def test_the_lag_counts_batches(run: Run) -> None:
    """The same lag for three parts, whatever the depth of channels."""
    parts = ("train.accumulate=3",)
    alone = run("bll", 1, *parts)
    assert results(run("bll", 4, *parts, "engine.depth=1")) == results(alone)
    assert run("bll", 1, *parts, "engine.lag=1")["fingerprint"] != alone["fingerprint"]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_goes_on_ends_with_the_same_bits(run: Run, tmp_path: Path, rule: str) -> None:
    often = ("train.accumulate=4", "checkpoint.every=4", "checkpoint.keep=9", "optimizer.average=0.9")
    whole = run(rule, 3, *often, directory=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    interrupt(tmp_path / "broken", 8)
    again = run(rule, 2, *often, directory=tmp_path / "broken")
    assert again["resumed_after"] == 8
    assert results(again) == results(whole)


@pytest.mark.parametrize("rule", RULES)
def test_parts_are_learnt_as_the_whole_batch(rule: str) -> None:
    """Up to rounding, without batch norm and dropout; similarity losses compare samples of a part alone."""
    rules = {
        "bll": cf.BLL(),
        "predsim": cf.PredSim(beta=0.0),
        "al": cf.AL(dim=12),
    }

    def weights(parts: int) -> dict[str, torch.Tensor]:
        trainer = cf.Trainer(network, rule=rules[rule], optimizer=cf.SGD(lr=0.05, momentum=0.9), blocks=4)
        return trainer.fit(data(96), epochs=3, batch_size=24, accumulate=parts).state_dict()

    whole, parted = weights(1), weights(4)
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_updates_come_after_the_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """No parameter changes before."""
    seen: list[tuple[int, int, bool]] = []
    learn = Stage.learn

    def observed(stage: Stage, part: cf.BatchPart) -> None:
        before = [parameter.clone() for parameter in stage.rule.parameters()]
        learn(stage, part)
        after = list(stage.rule.parameters())
        seen.append((part.n, part.index, any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))))

    monkeypatch.setattr(Stage, "learn", observed)
    cf.Trainer(network, blocks=1).fit(data(8), batch_size=4, accumulate=2)
    assert seen == [(0, 0, False), (0, 1, True), (1, 0, False), (1, 1, True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.accumulate=5",), "train.accumulate=5: must divide train.batch_size=24"),
        (("train.accumulate=0",), "train.accumulate=0: must be "),
        (("train.accumulate=2", "algorithm=bp"), "train.accumulate=2: allowed for algorithm=bp is 1"),
    ],
)
def test_what_does_not_fit_is_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_job(configured(*NETWORK, *LENGTH, *options))
