from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from counterflow.config import CustomConfig
from counterflow.models import build, build_seeded
from counterflow.models.custom import check_network
from counterflow.models.partition import layer_costs, profile_layers
from tests.helpers.networks import images


def custom(target: str, **args: Any) -> nn.Sequential:
    return build(CustomConfig(target=target, args=args), (2, 3, 5), 10, seed=1)


def test_the_factory_is_called_with_its_arguments() -> None:
    network = custom("tests.helpers.networks.images", width=3)
    assert len(network) == 3
    assert network[0][0].out_channels == 3
    assert custom("tests.helpers.networks.images")[0][0].out_channels == 8


def test_any_sequential_of_any_package() -> None:
    assert len(custom("torchvision.ops.MLP", in_channels=4, hidden_channels=[8, 3])) == 5


def test_images_that_are_not_square() -> None:
    network, x = custom("tests.helpers.networks.images", width=4), torch.randn(2, 2, 3, 5)
    layers = profile_layers(network, x)
    assert [layer.shape for layer in layers] == [(4, 3, 5), (4, 3, 3), (10,)]
    assert layer_costs(layers, "flops") == [2 * 15 * 4 * 18, 2 * 9 * 4 * 12, 2 * 36 * 10]


def test_sequences() -> None:
    network = build(CustomConfig(target="tests.helpers.networks.sequences"), (6,), 10, seed=1)
    layers = profile_layers(network, torch.randint(10, (2, 6)))
    assert [layer.shape for layer in layers] == [(6, 4), (6, 8), (6, 10)]
    assert layer_costs(layers, "flops") == [1, 2 * 6 * 4 * 8, 2 * 6 * 8 * 10]


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("no_such_package.factory", {}, "target=no_such_package.factory: No module named 'no_such_package'"),
        ("torch.nope.factory", {}, "target=torch.nope.factory: No module named 'torch.nope'"),
        (
            "tests.helpers.networks.nope",
            {},
            "target=tests.helpers.networks.nope: module 'tests.helpers.networks' has no attribute 'nope'",
        ),
        ("tests.helpers.networks.NUMBER", {}, "target=tests.helpers.networks.NUMBER: must be callable, is int"),
        (
            "tests.helpers.networks.a_list",
            {},
            "target=tests.helpers.networks.a_list: the network must be an nn.Sequential, is list",
        ),
        (
            "tests.helpers.networks.images",
            {"depth": 3},
            "args={'depth': 3}: got an unexpected keyword argument 'depth', for tests.helpers.networks.images",
        ),
        ("torch.nn.Linear", {}, "args={}: missing a required argument: 'in_features', for torch.nn.Linear"),
        ("builtins.dict", {}, "args={}: no signature found for builtin type <class 'dict'>, for builtins.dict"),
        (
            "tests.helpers.networks.in_place",
            {},
            "target=tests.helpers.networks.in_place: layer 1 must not change "
            "its input in place, begins with ReLU(inplace=True)",
        ),
    ],
)
def test_refused(target: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        custom(target, **args)
    assert str(error.value) == f"model.{message}"


def test_a_network_that_fits_is_returned() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.MaxPool2d(1), nn.Sequential(), nn.Linear(4, 2))
    assert check_network(network, "network") is network


@pytest.mark.parametrize("made", [nn.Linear(2, 2), [nn.Linear(2, 2)], None])
def test_other_types_of_a_network_are_refused(made: object) -> None:
    text = rf"^network=mine: the network must be an nn\.Sequential, is {type(made).__name__}$"
    with pytest.raises(ValueError, match=text):
        check_network(made, "network=mine")


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^network=mine: the network must have layers, has none$"):
        check_network(nn.Sequential(), "network=mine")


def test_layers_that_share_parameters_are_refused() -> None:
    shared, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = shared.weight
    check_network(nn.Sequential(nn.Sequential(shared, nn.Tanh(), shared), nn.Linear(4, 4)), "network")
    message = r"^network: layer 2 must not share parameters, its {} is one of layer 0$"
    with pytest.raises(ValueError, match=message.format("0.weight")):
        check_network(nn.Sequential(shared, nn.Tanh(), nn.Sequential(shared)), "network")
    with pytest.raises(ValueError, match=message.format("weight")):
        check_network(nn.Sequential(shared, nn.Tanh(), tied), "network")


def test_a_callable_has_the_weights_of_the_same_factory_by_name() -> None:
    torch.manual_seed(9)
    network, expected = build_seeded(images, 1), custom("tests.helpers.networks.images")
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_an_error_in_the_module_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.target=needs_more\.f: No module named 'no_such_dependency'$"):
        custom("needs_more.f")
