"""A rule of the user's own, made for every block by its class or by its name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalAlgorithm,
    LocalRule,
    Metrics,
    Payload,
    PerBlock,
    Prediction,
    Target,
)
from counterflow.cli.hydra_app import load_config
from counterflow.config import EngineConfig
from counterflow.engine.factory import build_engine
from counterflow.rank_info import RankInfo
from counterflow.trainer.fit import fit
from counterflow.trainer.job_builder import load_job
from counterflow.trainer.rank0 import ResumePoint
from counterflow.trainer.trainer import Trainer
from counterflow.transport import connect
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, configuration, summary_of

NAME = f"{__name__}.Readout"


class Readout(LocalRule):
    """A linear readout of every block, trained on cross entropy with smoothed labels."""

    def __init__(self, context: BlockContext, smoothing: float = 0.0, *, scale: float = 1.0) -> None:
        super().__init__()
        self.block = context.module
        width = context.shape[0]
        self.readout = nn.Identity() if context.is_top else nn.Linear(width, context.classes)
        self.smoothing = smoothing
        self.optimizer = context.optimizer(self.parameters(), scale)

    def forward_message(self, message: Payload) -> Payload:
        self.a = self.block(message[0])
        return (self.a.detach(),)

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        loss = F.cross_entropy(self.readout(self.a), target[0], label_smoothing=self.smoothing)
        self.optimizer.backward_and_step(loss, part)
        return {"loss": loss.detach()}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction]:
        a = self.block(message[0])
        return (a,), Prediction.of(self.readout(a))


def rank_summary(rank: int, size: int, store_path: str, rule: LocalAlgorithm) -> dict[str, Any]:
    """The summary of a small run under ``rule``, on every rank."""
    config = replace(configuration(*SMALL), algorithm=rule)
    job = load_job(config, RankInfo(rank, size))
    comm = connect(dist.FileStore(store_path, size) if size > 1 else None, rank, size, timeout=30)
    result = fit(job, config, comm, ResumePoint() if rank == 0 else None)
    comm.close()
    assert result is not None
    return dict(result.summary)


@pytest.fixture(scope="module")
def smoothed(pool: Pool) -> dict[str, Any]:
    """The summary of one process."""
    return pool.run(1, rank_summary, PerBlock(Readout, smoothing=0.1))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_change_nothing(pool: Pool, smoothed: dict[str, Any], ranks: int) -> None:
    together = pool.run(ranks, rank_summary, PerBlock(Readout, smoothing=0.1))[0]
    assert together["fingerprint"] == smoothed["fingerprint"]
    assert together["block_accuracy"] == smoothed["block_accuracy"]


def test_the_trainer_gives_the_same(smoothed: dict[str, Any]) -> None:
    config = load_config(SMALL)
    trainer = Trainer(
        config.model,
        rule=PerBlock(Readout, smoothing=0.1),
        optimizer=config.optimizer,
        device="cpu",
        engine=EngineConfig(threads=1),
    )
    result = trainer.fit(config.data, steps=12)
    assert result.fingerprint == smoothed["fingerprint"]
    assert result.summary["algorithm"] == "custom"


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_name_of_a_rule_gives_the_same(pool: Pool, smoothed: dict[str, Any], ranks: int) -> None:
    named = summary_of(
        pool, ranks, "algorithm=custom", f"algorithm.target={NAME}", "algorithm.args={smoothing: 0.1}", "device=cpu"
    )
    assert named["fingerprint"] == smoothed["fingerprint"]
    assert named["block_accuracy"] == smoothed["block_accuracy"]


def test_options_reach_the_rule(pool: Pool, smoothed: dict[str, Any]) -> None:
    others = [PerBlock(Readout), PerBlock(Readout, smoothing=0.2), PerBlock(Readout, smoothing=0.1, scale=0.5)]
    prints = {pool.run(1, rank_summary, other)[0]["fingerprint"] for other in others}
    assert len(prints | {smoothed["fingerprint"]}) == 4


def test_it_learns_digits(pool: Pool) -> None:
    options = ("algorithm=custom", f"algorithm.target={NAME}", "train.steps=132", "train.evaluate_every=0")
    assert min(summary_of(pool, 2, *options)["block_accuracy"]) > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PerBlock(Readout, smothing=0.1),
            r"^algorithm\.args=.*smothing.*: .*unexpected keyword.*Readout$",
        ),
        (lambda: PerBlock(Readout, context=1), r"^algorithm\.args=.*context.*: .*multiple values.*, for .*Readout$"),
        (lambda: PerBlock(nn.Linear), r"^algorithm\.target=Linear: must be a subclass of LocalRule$"),  # type: ignore[arg-type]
        (lambda: PerBlock(len), r"^algorithm\.target=len: must be a subclass of LocalRule$"),  # type: ignore[arg-type]
        (lambda: PerBlock(3), r"^algorithm\.target=3: must be a subclass of LocalRule$"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_and_other_objects_are_refused_in_one_line(make: Callable[[], PerBlock], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"^algorithm\.target=: must be the name of a LocalRule, package\.module\.Class$"),
        (["algorithm.target=Readout"], r"^algorithm\.target=Readout: must be the name of a LocalRule"),
        (["algorithm.target=no_such_package.Rule"], r"^algorithm\.target=no_such_package\.Rule: No module named"),
        (["algorithm.target=torch.nn.NoSuchRule"], r"^algorithm\.target=torch\.nn\.NoSuchRule: .*no attribute"),
        (["algorithm.target=torch.nn.Linear"], r"^algorithm\.target=Linear: must be a subclass of LocalRule$"),
        ([f"algorithm.target={NAME}", "algorithm.args={smothing: 1}"], r"^algorithm\.args=.*smothing.*: "),
        ([f"algorithm.target={NAME}", "algorithm.args=[1]"], r"^algorithm\.args=\[1\]: must be named arguments"),
    ],
)
def test_wrong_names_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        build_engine(load_job(load_config([*SMALL, "algorithm=custom", *overrides])))
    assert "\n" not in str(refusal.value)
