"""A process makes the layers of its own blocks: the values that they have in the whole network, and no others."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from counterflow.config import TrainConfig
from counterflow.data import load
from counterflow.engine.job import Job
from counterflow.metrics.provenance import digest
from counterflow.models import build
from counterflow.models.partition import is_outline
from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import build_job, materialized, task_of
from tests.helpers.configs import configured

OPTIONS = ("model=cnn", "model.channels=[4,6,8,8]", "model.strides=[1,2,1,1]", "blocks=3", "model.cut=[2,1,2]")


def network(config: TrainConfig, layers: tuple[int, ...] | None) -> nn.Sequential:
    task = task_of(load(config.data))
    return build(config.model, task.input_shape, task.classes, config.seed, layers)


def outlined(*more: str) -> tuple[TrainConfig, Job]:
    config = configured(*OPTIONS, *more)
    return config, build_job(config, network(config, ()), load(config.data), RankInfo())


def test_own_layers_have_the_values_of_the_whole_network() -> None:
    config, job = outlined()
    whole = network(config, None)
    found = materialized(job, config, [2, 3])
    assert [is_outline(layer) for layer in found.network] == [True, True, False, False, False]
    assert all(digest(found.network[i]) == digest(whole[i]) for i in (2, 3, 4))
    assert [len(block) for block in found.blocks] == [2, 1, 2]
    assert digest(materialized(job, config).network) == digest(whole)
    assert is_outline(job.network), "the job itself stays as it was"


def test_a_network_with_values_stays_as_it_is() -> None:
    config = configured(*OPTIONS)
    job = build_job(config, network(config, None), load(config.data), RankInfo())
    assert materialized(job, config, [1]) is job


def test_own_layers_are_frozen_and_take_their_weights_from_the_file(tmp_path: Path) -> None:
    config, _ = outlined()
    other = network(replace(config, seed=99), None)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    config, job = outlined(f"model.init={tmp_path / 'other.pt'}", "model.freeze=[0,2]")
    found = materialized(job, config, [2])
    assert digest(found.network[2]) == digest(other[2])
    assert not any(parameter.requires_grad for parameter in found.network[2].parameters())
    assert is_outline(found.network[0])
    assert digest(materialized(job, config, [2], loads=False).network[2]) != digest(other[2]), "a checkpoint has them"
