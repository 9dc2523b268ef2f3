"""Block pairs are timed as they run, and timing them changes nothing."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import BlockContext, LocalRule, Metrics, Payload, PerBlock, Prediction, Target
from counterflow.engine.job import Job
from counterflow.engine.profile import pair_time, profiled_cut, rules_of
from counterflow.metrics.provenance import digest
from counterflow.trainer.job_builder import load_job
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL


def job_of(*overrides: str) -> Job:
    return load_job(configured(*SMALL, *overrides))


class Sleepy(LocalRule):
    """Sleeps so many milliseconds in each of its parts."""

    def __init__(self, context: BlockContext) -> None:
        super().__init__()
        self.block = context.module

    def receive_target(self, n: int, message: Payload) -> Target:
        time.sleep(1e-3)
        return message

    def make_target(self, n: int, target: Target) -> Payload:
        time.sleep(3e-3)
        return target

    def forward_message(self, message: Payload) -> Payload:
        time.sleep(10e-3)
        return (self.block(message[0]),)

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        time.sleep(20e-3)
        return {"loss": torch.zeros(())}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Prediction]:
        raise AssertionError("nothing is predicted here")


def test_each_part_of_a_pair_is_timed() -> None:
    job = job_of("blocks=2", "model.cut=[2,3]")
    rules = PerBlock(Sleepy).rule_set(job.rule_context)
    bottom, top = (pair_time(job, rules, block) for block in (1, 2))
    assert 1e6 < bottom.target < top.target, "the bottom block sends no target"
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
        ("model=cnn", "model.channels=[4,4,4]", "model.strides=[1,2,1]", "engine.wire=int8"),
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


def test_an_expensive_latent_head_moves_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one cost, and blocks that end early pay for it: flops cannot see it."""
    job = job_of("model.cut=profile", "blocks=2", "model.hidden=5", "model.width=64", "train.batch_size=256")
    taken = {1: 1.0, 2: 1.0, 3: 1.0, 4: 60.0, 5: 60.0, 6: 1.0}

    def slow(_: Job, rules: Any, block: int) -> Any:
        end = sum(len(rules.context.blocks[k]) for k in range(block))
        pair = pair_time(job, rules, block)
        return replace(pair, learn=round(taken[end] * 1e7))

    monkeypatch.setattr("counterflow.engine.profile.pair_time", slow)
    assert sum(profiled_cut(job)[:1]) not in (4, 5)


def test_the_rules_of_a_profile_hold_copies() -> None:
    job = job_of("blocks=2")
    before = digest(job.network)
    pair_time(job, rules_of(job, [2, 3]), 1)
    assert digest(job.network) == before
