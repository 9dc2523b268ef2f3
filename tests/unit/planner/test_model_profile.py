"""Layers measured on this machine, as far as it does not depend on the clock."""

from dataclasses import replace

import pytest
import torch

from counterflow.algorithms import LocalAlgorithm
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import local_bytes
from counterflow.message import HEADER_BYTES
from counterflow.metrics.provenance import digest
from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import local_memory, local_stage, profile_model, stages_of, with_wire
from counterflow.trainer.job_builder import load_job
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL


def job_of(*overrides: str) -> Job:
    return load_job(configured(*SMALL, "blocks=1", *overrides))


def test_bytes_by_hand() -> None:
    job = job_of("model.hidden=2", "model.width=12", "model.norm=none", "algorithm.feedback.kind=linear")
    profile = profile_model(job, lambda text: None)
    assert [layer.parameters for layer in profile.layers] == [
        4 * (64 * 12 + 12),
        4 * (12 * 12 + 12),
        4 * (12 * 10 + 10),
    ]
    assert [layer.output for layer in profile.layers] == [4 * 32 * 12, 4 * 32 * 12, 4 * 32 * 10]
    assert [layer.block_overhead.up for layer in profile.layers] == [HEADER_BYTES + 2 * 4 * 32 * 12] * 2 + [0]
    book, labels = 512, 64  # 4 * 10 * 12 and 32 bytes, each to a multiple of 64
    assert [layer.block_overhead.down for layer in profile.layers] == [HEADER_BYTES + book + labels] * 2 + [0]
    assert [layer.block_overhead.parameters for layer in profile.layers] == [0, 4 * 12 * 12, 4 * 12 * 10]
    assert profile.layers[2].kept == 4 * 32 * 10, "the output: what it is made from belongs to the layer below"
    assert (profile.batch, profile.copies) == (32, 4)


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [("adamw", 4), ("sgd", 3), ("muon", 3), ("muon optimizer.average=0.9", 4), ("sgd optimizer.momentum=0.0", 2)],
)
def test_optimizers_keep_what_they_keep(optimizer: str, copies: int) -> None:
    overrides = f"optimizer={optimizer}".split()
    assert profile_model(job_of("model.hidden=1", *overrides), lambda text: None).copies == copies


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=bll",),
        ("algorithm=al",),
        ("algorithm=predsim",),
        ("model=transformer", "data=reverse"),
        ("model=cnn", "model.channels=[4,4]", "model.strides=[1,2]", "engine.channels_last=true", "train.batch_size=3"),
        ("model=cnn", "model.channels=[4,4]", "model.strides=[1,2]", "engine.precision=bf16", "model.dropout=0.5"),
    ],
)
def test_every_rule_can_be_measured_and_nothing_changes(overrides: tuple[str, ...]) -> None:
    job = job_of(*overrides)
    state, before = torch.get_rng_state(), digest(job.network)
    profile = profile_model(job, lambda text: None)
    assert len(profile.layers) == len(job.network)
    for layer in profile.layers:
        assert layer.forward > 0
        assert 0 <= layer.fixed_forward <= layer.forward + 1e-3
        assert 0 <= layer.entrance <= layer.backward
        assert (
            min(layer.update, layer.block_overhead.learn, layer.block_overhead.forward, layer.block_overhead.target)
            >= 0
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(job.network) == before


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_messages_have_the_bytes_of_the_run(wire: str) -> None:
    options = ("model.hidden=2", "model.width=64", f"engine.wire={wire}", "algorithm.feedback.refresh=4")
    stages = stages_of(local_stage(profile_model(job_of(*options), lambda text: None), 1.0), [1, 2])
    run = load_job(configured(*SMALL, "blocks=2", "model.cut=[1,2]", *options))
    assert isinstance(run.algorithm, LocalAlgorithm)
    found = local_bytes(run, run.algorithm.rule_set(run.rule_context))
    assert found == {"up": [stages[0].up], "down": [stages[0].down]}
    numbers = 4 * 32 * (64 + 64)  # a and u, beside the message
    memory, smaller = (
        local_memory([replace(stages[0], unpacked=n), stages[1]], LocalRun()) for n in (stages[0].unpacked, 0)
    )
    assert stages[0].unpacked == (0 if wire == "fp32" else numbers)
    assert [more - less for more, less in zip(memory, smaller, strict=True)] == [0, stages[0].unpacked]


@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_replicas_and_parts_have_the_bytes_of_the_run(wire: str) -> None:
    options = ("model.hidden=2", "model.width=64", "replicas=2", "train.accumulate=4", "train.batch_size=64")
    job = job_of(*options)
    found = with_wire(job, profile_model(job, lambda text: None), wire)
    assert (found.batch, found.parts) == (64, 4)
    stages = stages_of(local_stage(found, 1.0), [1, 2])
    run = load_job(configured(*SMALL, "blocks=2", "model.cut=[1,2]", f"engine.wire={wire}", *options))
    assert isinstance(run.algorithm, LocalAlgorithm)
    assert local_bytes(run, run.algorithm.rule_set(run.rule_context)) == {
        "up": [stages[0].up],
        "down": [stages[0].down],
    }
    assert stages[0].parameters == 4 * (64 * 64 + 64 + 2 * 64) == stages[0].states // 4
    assert stages[0].unpacked == (0 if wire == "fp32" else 4 * 8 * (64 + 64))
    # What is kept is that of a part of eight samples.
    whole = stages_of(
        local_stage(profile_model(job_of(*options[:2], "train.batch_size=8"), lambda text: None), 1.0), [1, 2]
    )
    assert [stage.kept for stage in stages] == [stage.kept for stage in whole]


def test_another_wire_is_never_quicker_to_pack() -> None:
    """What differs in time is the packing alone, so that no noise of the layers chooses a wire."""
    job = job_of("model.hidden=2", "model.width=64")
    exact = profile_model(job, lambda text: None)
    coarse = with_wire(job, exact, "int8")
    for before, after in zip(exact.layers, coarse.layers, strict=True):
        assert after.block_overhead.forward >= before.block_overhead.forward
        assert after.block_overhead.up <= before.block_overhead.up
        assert replace(after, block_overhead=before.block_overhead, output=before.output) == before
    assert with_wire(job, exact, "fp32") == exact
