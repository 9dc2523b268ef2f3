"""From YAML files and overrides to a configuration, and the one line that refuses."""

from dataclasses import fields, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from counterflow.algorithms.bll import BLL
from counterflow.cli.hydra_app import job_name, load_config
from counterflow.config import (
    AdamW,
    DataConfig,
    EngineConfig,
    FeedbackConfig,
    MLPConfig,
    TrainConfig,
    TrainLoopConfig,
)
from tests.helpers.processes import CONF

SCHEMAS = {
    "algorithm": ["al", "bll", "bp", "custom", "fa", "predsim"],
    "model": [
        "cnn",
        "custom",
        "fastcnn",
        "gpt",
        "mlp",
        "resnet18",
        "resnet20",
        "resnet32",
        "resnet50",
        "transformer",
        "vgg",
    ],
    "data": ["cifar10", "cifar100", "digits", "fashion_mnist", "image_folder", "mnist", "reverse"],
    "optimizer": ["adamw", "muon", "sgd"],
}
"""Choices that need no file, as all their values are those of the schema."""
FILES = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
CHOICES = sorted([*FILES, *((group, name) for group, names in SCHEMAS.items() for name in names)])
# Groups that set values of others, and hold no part of the configuration themselves.
VALUES = ("experiment", "scale")
# What a choice cannot do without.
NEEDS = {
    ("algorithm", "custom"): ["algorithm.target=package.module.Readout"],
    ("model", "custom"): ["model.target=package.module.factory"],
}


def choices(group: str) -> str:
    return ", ".join(name for of, name in CHOICES if of == group)


@cache
def plain() -> TrainConfig:
    """The configuration without overrides, for tests that only compare with it."""
    return load_config([])


def keys(schema: type) -> str:
    return ", ".join(field.name for field in fields(schema))  # type: ignore[arg-type]


def test_defaults_are_those_of_the_contract() -> None:
    config = load_config([])
    assert type(config) is TrainConfig
    assert (config.seed, config.blocks, config.device) == (1, 4, "auto")
    assert config.algorithm == BLL()
    assert config.model == MLPConfig()
    assert config.data == DataConfig(name="digits", validation=0.1)
    assert config.optimizer == AdamW()
    assert config.engine == EngineConfig()
    assert config.engine.lag == 2
    assert (config.train.epochs, config.train.batch_size, config.train.steps) == (30, 32, None)
    assert config.run.dir is None


def compositions() -> list[list[tuple[str, str]]]:
    """Every choice once, one of each group at a time, as each composition takes a tenth of a second."""
    groups = [[choice for choice in CHOICES if choice[0] == group] for group in SCHEMAS]
    return [[choice for choice in row if choice] for row in zip_longest(*groups)]


@pytest.mark.parametrize("row", compositions(), ids=lambda row: ",".join(f"{group}={name}" for group, name in row))
def test_every_choice_composes(row: list[tuple[str, str]]) -> None:
    needed = [override for choice in row for override in NEEDS.get(choice, [])]
    config = load_config([*(f"{group}={name}" for group, name in row), *needed])
    for group, name in row:
        if name in SCHEMAS[group]:
            assert getattr(config, group).name == name
        else:  # a file, which names the schema that it sets values of
            content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
            assert isinstance(content, dict)
            (schema, own) = content.pop("defaults")
            assert (getattr(config, group).name, own) == (schema, "_self_")
            assert content.items() <= vars(getattr(config, group)).items()


@pytest.mark.parametrize("name", ["table1", "al_cifar10", "cifar10_fast"])
def test_a_preset_gives_way_to_overrides(name: str) -> None:
    """tests/distributed/cli/test_experiments.py composes every preset at every scale."""
    config = load_config([f"experiment={name}", "seed=17", "train.epochs=77"])
    assert (config.seed, config.train.epochs) == (17, 77)
    changed = replace(plain(), seed=17, train=replace(plain().train, epochs=77))
    assert config != changed, "a preset that changes nothing"


def test_overrides_reach_every_level() -> None:
    config = load_config(
        ["seed=3", "algorithm.feedback.lr_scale=0.5", "model=cnn", "model.channels=[4]", "model.strides=[2]"]
    )
    assert config.seed == 3
    assert isinstance(config.algorithm, BLL)
    assert config.algorithm.feedback.lr_scale == 0.5
    assert config.model.name == "cnn"
    assert config.model.channels == [4]  # type: ignore[attr-defined]


def test_one_configuration_leaves_nothing_for_the_next() -> None:
    before = plain()
    load_config(["model=cnn", "optimizer=sgd", "seed=9"])
    with pytest.raises(ValueError, match="nope"):
        load_config(["nope=1"])
    assert load_config([]) == before


def test_it_works_where_hydra_is_in_use_already() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert load_config(["seed=9"]).seed == 9


def test_it_works_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = plain()
    monkeypatch.chdir(tmp_path)
    assert load_config([]) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nope=1", f"nope: no such key, allowed are {keys(TrainConfig)}"),
        ("train.nope=1", f"train.nope: no such key, allowed are {keys(TrainLoopConfig)}"),
        ("algorithm.feedback.nope=1", f"algorithm.feedback.nope: no such key, allowed are {keys(FeedbackConfig)}"),
        ("model.channels=[1]", f"model.channels: no such key, allowed are {keys(MLPConfig)}"),
        ("+new=1", f"new: no such key, allowed are {keys(TrainConfig)}"),
        ("+new.deep.down=1", f"new: no such key, allowed are {keys(TrainConfig)}"),
        ("+train.new=1", f"train.new: no such key, allowed are {keys(TrainLoopConfig)}"),
        ("++algorithm.feedback.new=1", f"algorithm.feedback.new: no such key, allowed are {keys(FeedbackConfig)}"),
        ("model=lstm", f"model=lstm: allowed are {choices('model')}"),
        ("scale=huge", "scale=huge: allowed are cpu, full, smoke"),
        ("scale=cpu", "scale=cpu: has no effect without experiment=NAME, whose values it chooses"),
        ("optimizer=rprop", f"optimizer=rprop: allowed are {choices('optimizer')}"),
        ("experiment=none_such", f"experiment=none_such: allowed are {choices('experiment')}"),
    ],
)
def test_an_unknown_key_or_choice_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        load_config([override])
    assert str(error.value) == message


def refusal(override: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is looked into
        load_config([override])
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("engine.depth=deep", "Integer"),
        ("train.log_every=1.5", "Integer"),
        ("optimizer.lr=fast", "Float"),
        ("data.augment=maybe", "bool"),
        ("optimizer.betas=[0.9,high]", "Float"),
        ("model.width.inner=1", "Integer"),
        ("seed=null", "not Optional"),
        ("engine=null", "not Optional"),
        ("engine=fast", "EngineConfig"),
        ("run.dir=[1]", "string"),
    ],
)
def test_a_wrong_type_is_refused_in_one_line(override: str, kind: str) -> None:
    message = refusal(override)
    assert message.startswith(f"{override}: ")
    assert kind in message


@pytest.mark.parametrize("override", ["seed=[", "model.norm='", "engine.lag", "-x"])
def test_what_cannot_be_read_is_refused_in_one_line(override: str) -> None:
    assert refusal(override).startswith(f"{override}: ")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.cut={a:1}", ["model.cut", "flops", "list"]),
        ("engine.lag={a:1}", ["engine.lag", "exact"]),
        ("engine.threads={a:1}", ["engine.threads", "auto"]),
        ("~data", ["data"]),
        ("seed=???", ["seed"]),
        ("seed=1,2", ["seed=1,2"]),
        ("seed=${nope}", ["seed", "nope"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(override: str, named: list[str]) -> None:
    message = refusal(override)
    assert [name for name in named if name not in message] == []


@pytest.mark.parametrize(("scale", "steps"), [("smoke", 10), ("cpu", None), ("full", None)])
def test_a_preset_names_a_value_for_every_scale(scale: str, steps: int | None) -> None:
    assert load_config(["experiment=table1", f"scale={scale}", "hydra.mode=RUN"]).train.steps == steps


@pytest.mark.parametrize(("algorithm", "steps"), [("bp", 3), ("bll", 7)])
def test_a_value_for_an_algorithm_and_one_for_the_others(algorithm: str, steps: int) -> None:
    overrides = [f"algorithm={algorithm}", "train.steps='${by_algorithm:{bp:3,others:7}}'"]
    assert load_config(overrides).train.steps == steps


@pytest.mark.parametrize("values", ["1", "1,2,3,4"])
def test_a_value_for_every_scale_is_needed(values: str) -> None:
    assert "by_scale: needs 3 values, for smoke, cpu, full" in refusal(f"train.steps=${{by_scale:{values}}}")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["seed=1", "algorithm=bll"], "algorithm=bll,seed=1"),
        (["algorithm=bll", "seed=1", "experiment=table1", "scale=cpu", "data.root=/a/b"], "algorithm=bll,seed=1"),
        (["run.dir=there", "run.display=false", "hydra.verbose=true", "engine.threads=1"], "default"),
        (["model.target=a/b", "+x=1", "model.stages=[1,2]"], "+x=1,model.stages=[1,2],model.target=a_b"),
    ],
)
def test_jobs_are_named_by_what_tells_them_apart(overrides: list[str], name: str) -> None:
    assert job_name(overrides) == name
