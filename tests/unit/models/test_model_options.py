"""Options of the models, as a user gives them; and the presets of the papers."""

from typing import Any

import pytest

from counterflow.cli.hydra_app import load_config
from counterflow.config import CustomConfig, ModelConfig
from counterflow.models import build
from tests.helpers.configs import configured


def model(*overrides: str) -> ModelConfig:
    return load_config(list(overrides)).model


REFUSED = [
    ("vgg", "name=cnn", "name=cnn: allowed are vgg"),
    ("vgg", "cut=layers", "cut=layers: allowed are flops, parameters, profile"),
    ("vgg", "channels=[]", "channels=[]: must be a list of positive numbers"),
    ("vgg", "channels=[1,0]", "channels=[1, 0]: must be a list of positive numbers"),
    ("vgg", "pools=[1,2]", "pools=[1, 2]: must be 6 positive numbers, one a convolution"),
    ("vgg", "pools=[1,2,1,2,2,0]", "pools=[1, 2, 1, 2, 2, 0]: must be 6 positive numbers, one a convolution"),
    ("vgg", "hidden=[8,0]", "hidden=[8, 0]: must be a list of positive numbers, or []"),
    ("vgg", "width=0", "width=0.0: must be greater than 0 and at most 1048576"),
    ("vgg", "width=nan", "width=nan: must be greater than 0 and at most 1048576"),
    ("vgg", "width=inf", "width=inf: must be greater than 0 and at most 1048576"),
    ("vgg", "dropout=1", "dropout=1.0: must be at least 0 and below 1"),
    ("transformer", "name=mlp", "name=mlp: allowed are transformer"),
    ("transformer", "layers=0", "layers=0: must be at least 1 and at most 1048576"),
    ("transformer", "heads=0", "heads=0: must be at least 1 and at most 1048576"),
    ("transformer", "heads=3", "heads=3: must divide model.width=64"),
    ("transformer", "width=0", "width=0: must be at least 1 and at most 1048576"),
    ("transformer", "hidden=0", "hidden=0: must be at least 1 and at most 1048576"),
    ("transformer", "dropout=1", "dropout=1.0: must be at least 0 and below 1"),
    ("custom", "name=mlp", "name=mlp: allowed are custom"),
    ("custom", "target=''", "target=: must be the name of a factory, package.module.factory"),
    ("custom", "target=factory", "target=factory: must be the name of a factory, package.module.factory"),
    ("custom", "target=..a.b", "target=..a.b: must be the name of a factory, package.module.factory"),
    ("custom", "target=os.sys-tem", "target=os.sys-tem: must be the name of a factory, package.module.factory"),
    ("fastcnn", "widths=[]", "widths=[]: must be a list of positive numbers"),
    ("fastcnn", "widths=[4,0]", "widths=[4, 0]: must be a list of positive numbers"),
    ("fastcnn", "scale=0", "scale=0.0: must be greater than 0"),
    ("resnet50", "name=resnet18", "name=resnet18: allowed are resnet50"),
    ("resnet20", "name=resnet18", "name=resnet18: allowed are resnet20"),
    ("resnet32", "name=resnet20", "name=resnet20: allowed are resnet32"),
]


@pytest.mark.parametrize(("choice", "override", "message"), REFUSED)
def test_refused(choice: str, override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        configured(f"model={choice}", f"model.{override}")
    assert str(error.value) == f"model.{message}"


def test_the_edge_of_what_is_allowed_is_taken() -> None:
    config = model("model=vgg", "model.channels=[1]", "model.pools=[1]", "model.hidden=[]", "model.width=1e-9")
    assert len(build(config, (1, 1, 1), 2, seed=1)) == 2


@pytest.mark.parametrize(
    ("overrides", "args"),
    [
        (["model.args={width:3,deep:[1,{a:2}]}"], {"width": 3, "deep": [1, {"a": 2}]}),
        (["+model.args.width=3", "model.args.width=4"], {"width": 4}),
        (["model.args=null"], {}),
        ([], {}),
    ],
)
def test_arguments_of_a_factory(overrides: list[str], args: dict[str, Any]) -> None:
    config = model("model=custom", "model.target=tests.helpers.networks.images", *overrides)
    assert isinstance(config, CustomConfig)
    assert config.args == args


@pytest.mark.parametrize("args", ["3", "[1]", "{1:2}"])
def test_arguments_without_names_are_refused(args: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.args=\S[^\n]*: must be named arguments, {name: value, \.\.}$"):
        model("model=custom", "model.target=tests.helpers.networks.images", f"model.args={args}")


@pytest.mark.parametrize(
    ("preset", "name", "layers", "options"),
    [
        ("al_mlp", "mlp", 6, {"width": 1024, "norm": "none"}),
        ("al_cnn", "cnn", 9, {"norm": "none"}),
        ("al_vgg", "vgg", 9, {"hidden": [1024, 1024]}),
    ],
)
def test_a_preset_is_a_configuration_of_its_model(preset: str, name: str, layers: int, options: dict[str, Any]) -> None:
    config = configured(f"model={preset}").model
    assert config.name == name
    assert type(config) is type(configured(f"model={name}").model)
    assert options.items() <= vars(config).items()
    assert len(build(config, (1, 8, 8), 10, seed=1)) == layers
