"""Block pairs are timed as they run, and timing them changes nothing."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterflow.algorithms.rule import Algorithm, LocalRule, Metrics, Payload, Target, Task
from counterflow.cli.hydra_app import load_config
from counterflow.config import AlgorithmConfig
from counterflow.engine.job import Job
from counterflow.trainer.job_builder import load_job
from counterflow.engine.profile import column_of, pair_time, profiled_cut
from counterflow.metrics.fingerprint import digest
from tests.helpers.runs import SMALL


def job_of(*overrides: str) -> Job:
    return load_job(load_config([*SMALL, *overrides]))


class Sleepy(LocalRule):
    """Sleeps so many milliseconds in each of its parts."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def receive_target(self, n: int, message: Payload) -> Target:
        time.sleep(1e-3)
        return message

    def make_target(self, n: int, target: Target) -> Payload:
        time.sleep(3e-3)
        return target

    def forward_message(self, message: Payload) -> Payload:
        time.sleep(10e-3)
        return (self.block(message[0]),)

    def update(self, n: int, message: Payload, target: Target) -> Metrics:
        time.sleep(20e-3)
        return {"loss": torch.zeros(())}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor]:
        raise AssertionError("nothing is predicted here")

    @property
    def inference_modules(self) -> tuple[nn.Module, ...]:
        return (self.block,)


class SleepyColumn(Algorithm):
    Config = AlgorithmConfig

    def rule(self, block: int) -> LocalRule:
        return Sleepy(self.blocks[block - 1])


def test_each_part_of_a_pair_is_timed() -> None:
    job = job_of("blocks=2")
    blocks, shapes = [job.network[:2], job.network[2:]], [(256,), (10,)]
    task = Task((1, 8, 8), 10)
    column = SleepyColumn(job.config.algorithm, job.config.optimizer, blocks, shapes, task, 10, 1)
    bottom, top = (pair_time(job, column, block) for block in (1, 2))
    assert 1e6 < bottom.target < top.target, "the bottom block emits nothing"
    assert top.target > 4e6
    for pair in (bottom, top):
        assert 10e6 < pair.forward < pair.learn
        assert pair.learn > 20e6
        assert pair.total == pair.target + pair.forward + pair.learn


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=bll",),
        ("algorithm=bll", "algorithm.feedback.refresh=4"),
        ("algorithm=al",),
        ("algorithm=predsim",),
        ("algorithm=bp", "schedule=1f1b"),
        ("algorithm=bp", "schedule=naive"),
        ("model=cnn", "model.channels=[4,4,4]", "model.strides=[1,2,1]", "engine.channels_last=true"),
        ("model=cnn", "model.channels=[4,4,4]", "model.strides=[1,2,1]", "engine.precision=bf16"),
        ("model=transformer", "data=reverse"),
        ("model.dropout=0.5",),
    ],
)
def test_every_rule_can_be_profiled_and_nothing_changes(overrides: tuple[str, ...]) -> None:
    job = job_of("model.cut=profile", "blocks=3", *overrides)
    state, before = torch.get_rng_state(), digest(job.network)
    counts = profiled_cut(job)
    assert len(counts) == 3
    assert sum(counts) == len(job.network)
    assert min(counts) >= 1
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(job.network) == before
    assert next(job.network.parameters()).grad is None


def test_a_dear_latent_head_moves_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one cost, and blocks that end early pay for it: flops cannot see it."""
    job = job_of("model.cut=profile", "blocks=2", "model.hidden=5", "model.width=64", "train.batch_size=256")
    taken = {1: 1.0, 2: 1.0, 3: 1.0, 4: 60.0, 5: 60.0, 6: 1.0}

    def slow(_: Job, column: Any, block: int) -> Any:
        end = sum(len(column.blocks[k]) for k in range(block))
        pair = pair_time(job, column, block)
        return replace(pair, learn=round(taken[end] * 1e7))

    monkeypatch.setattr("counterflow.engine.profile.pair_time", slow)
    assert sum(profiled_cut(job)[:1]) not in (4, 5)


def test_a_column_is_made_of_copies() -> None:
    job = job_of("blocks=2")
    before = digest(job.network)
    column = column_of(job, [2, 3])
    pair_time(job, column, 1)
    assert digest(job.network) == before
