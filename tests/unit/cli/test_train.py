"""From the configuration to the Trainer: every option arrives."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from counterflow.cli.train import run_job
from counterflow.config import TrainConfig
from counterflow.trainer import trainer
from tests.helpers.configs import configured

CHANGED = (
    "seed=5", "blocks=3", "scale=smoke", "device=cpu", "trace=true", "train.epochs=2", "train.batch_size=16",
    "train.microbatches=2", "train.accumulate=4",
    "train.steps=7", "train.evaluate_every=3", "train.patience=2", "train.test=false",
    "train.log_every=4", "checkpoint.every=11", "checkpoint.keep=5", "checkpoint.grace=7", "checkpoint.best=true",
    "checkpoint.transport=gather",
    "run.resume=never", "run.activations=9", "run.experiment=mine", "run.loggers=[]",
)  # fmt: skip


class ArrivedError(Exception):
    """The Trainer has made its configuration."""


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(config: TrainConfig, *_: object) -> None:
        raise ArrivedError(config)

    monkeypatch.setattr(trainer, "build_job", build)
    wanted = configured(*CHANGED, f"run.dir={tmp_path}")
    assert _unchanged(wanted.train) == _unchanged(wanted.checkpoint) == []
    with pytest.raises(ArrivedError) as arrived:
        run_job(wanted)
    found: TrainConfig = arrived.value.args[0]
    for name in ("train", "checkpoint", "data", "optimizer", "engine", "model", "algorithm"):
        assert getattr(found, name) == getattr(wanted, name), name
    run = {"dir", "resume", "activations", "experiment", "loggers"}  # the rest is of the command line alone
    assert {name: getattr(found.run, name) for name in run} == {name: getattr(wanted.run, name) for name in run}
    assert [getattr(found, name) for name in ("seed", "blocks", "scale", "device", "schedule", "trace")] == [
        *(5, 3, "smoke", "cpu", "auto", True)
    ]


def _unchanged(options: Any) -> list[str]:
    """Options with the value that they have anyway, which would be no test."""
    assert is_dataclass(options)
    standard = type(options)()
    return [field.name for field in fields(options) if getattr(options, field.name) == getattr(standard, field.name)]
