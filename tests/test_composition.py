"""From YAML files and overrides to a configuration, and the one line that refuses."""

from dataclasses import fields
from pathlib import Path

import pytest

from counterflow.algorithms.bll import BLLConfig
from counterflow.composition import configure
from counterflow.config import AdamWConfig, DataConfig, EngineConfig, MLPConfig, TrainConfig
from processes import CONF

GROUPS = sorted(folder for folder in CONF.iterdir() if folder.is_dir())
CHOICES = [(group.name, path.stem) for group in GROUPS for path in sorted(group.glob("*.yaml"))]
EXPERIMENTS = [name for group, name in CHOICES if group == "experiment"]


def test_defaults_are_those_of_the_contract() -> None:
    config = configure(CONF, [])
    assert type(config) is TrainConfig
    assert (config.seed, config.blocks, config.device) == (1, 4, "auto")
    assert config.algorithm == BLLConfig()
    assert config.model == MLPConfig()
    assert config.data == DataConfig(name="digits")
    assert config.optimizer == AdamWConfig()
    assert config.engine == EngineConfig()
    assert config.engine.lag == 2
    assert (config.train.epochs, config.train.batch_size, config.train.steps) == (30, 32, None)
    assert config.run.dir is None


def test_the_groups_are_those_of_the_contract() -> None:
    assert {"algorithm", "model", "data", "optimizer"} <= {group.name for group in GROUPS}
    for group, name in (("algorithm", "bll"), ("model", "mlp"), ("data", "digits"), ("data", "fashion_mnist")):
        assert (group, name) in CHOICES


@pytest.mark.parametrize(("group", "name"), [choice for choice in CHOICES if choice[0] != "experiment"])
def test_every_choice_composes_and_has_its_own_name(group: str, name: str) -> None:
    config = configure(CONF, [f"{group}={name}"])
    assert getattr(config, group).name == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_composes_and_gives_way_to_overrides(name: str) -> None:
    config = configure(CONF, [f"experiment={name}", "seed=17", "train.epochs=77"])
    assert (config.seed, config.train.epochs) == (17, 77)
    plain = configure(CONF, ["seed=17", "train.epochs=77"])
    assert config != plain, "a preset that changes nothing"


def test_overrides_reach_every_level() -> None:
    config = configure(
        CONF, ["seed=3", "algorithm.feedback.lr_scale=0.5", "model=cnn", "model.channels=[4]", "model.strides=[2]"]
    )
    assert config.seed == 3
    assert isinstance(config.algorithm, BLLConfig)
    assert config.algorithm.feedback.lr_scale == 0.5
    assert config.model.name == "cnn"
    assert config.model.channels == [4]  # type: ignore[attr-defined]


def test_one_configuration_leaves_nothing_for_the_next() -> None:
    before = configure(CONF, [])
    configure(CONF, ["model=cnn", "optimizer=sgd", "seed=9"])
    with pytest.raises(ValueError, match="nope"):
        configure(CONF, ["nope=1"])
    assert configure(CONF, []) == before


def test_a_relative_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONF.parent)
    assert configure(Path("conf"), []) == configure(CONF, [])


TOP = ", ".join(field.name for field in fields(TrainConfig))
MLP = "name, cut, width, hidden, norm, dropout"
LOOP = "epochs, batch_size, steps, evaluate_every, log_every"
FEEDBACK = "kind, hidden, norm, lr_scale, refresh"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nope=1", f"nope: no such key, allowed are {TOP}"),
        ("train.nope=1", f"train.nope: no such key, allowed are {LOOP}"),
        ("algorithm.feedback.nope=1", f"algorithm.feedback.nope: no such key, allowed are {FEEDBACK}"),
        ("model.channels=[1]", f"model.channels: no such key, allowed are {MLP}"),
        ("+new=1", f"new: no such key, allowed are {TOP}"),
        ("+new.deep.down=1", f"new: no such key, allowed are {TOP}"),
        ("+train.new=1", f"train.new: no such key, allowed are {LOOP}"),
        ("++algorithm.feedback.new=1", f"algorithm.feedback.new: no such key, allowed are {FEEDBACK}"),
        ("model=lstm", "model=lstm: allowed are cnn, mlp, resnet18"),
        ("optimizer=rprop", "optimizer=rprop: allowed are adamw, sgd"),
        ("experiment=none_such", f"experiment=none_such: allowed are {', '.join(EXPERIMENTS)}"),
    ],
)
def test_an_unknown_key_or_choice_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        configure(CONF, [override])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("engine.depth=deep", ["engine.depth", "deep", "Integer"]),
        ("train.log_every=1.5", ["train.log_every", "1.5", "Integer"]),
        ("optimizer.lr=fast", ["optimizer.lr", "fast", "Float"]),
        ("data.augment=maybe", ["data.augment", "maybe", "bool"]),
        ("optimizer.betas=[0.9,high]", ["optimizer.betas", "high", "Float"]),
        ("seed=null", ["seed", "null"]),
        ("engine=null", ["engine", "null"]),
        ("engine=fast", ["engine", "fast"]),
        ("model.width.inner=1", ["model.width", "Integer"]),
        ("model.cut={a:1}", ["model.cut", "flops", "list"]),
        ("engine.lag={a:1}", ["engine.lag", "exact"]),
        ("engine.threads={a:1}", ["engine.threads", "auto"]),
        ("~data", ["data"]),
        ("seed=???", ["seed"]),
        ("seed=1,2", ["seed=1,2"]),
        ("seed=${nope}", ["seed", "nope"]),
        ("seed=[", ["seed=["]),
        ("model.norm='", ["model.norm='"]),
        ("engine.lag", ["engine.lag"]),
        ("-x", ["-x"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(override: str, named: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the message is looked into
        configure(CONF, [override])
    message = str(error.value)
    assert "\n" not in message
    assert [name for name in named if name not in message] == []
