from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from counterflow.config import CustomConfig
from counterflow.models import build
from counterflow.models.partition import layer_costs, output_shapes


def custom(target: str, **args: Any) -> nn.Sequential:
    return build(CustomConfig(target=target, args=args), (2, 3, 5), 10, seed=1)


def test_the_factory_is_called_with_its_arguments() -> None:
    network = custom("tests.helpers.factories.images", width=3)
    assert len(network) == 3
    assert network[0][0].out_channels == 3
    assert custom("tests.helpers.factories.images")[0][0].out_channels == 8


def test_any_sequential_of_any_package() -> None:
    assert len(custom("torch.nn.Sequential")) == 0


def test_images_that_are_not_square() -> None:
    network, x = custom("tests.helpers.factories.images", width=4), torch.randn(2, 2, 3, 5)
    assert output_shapes(network, x) == [(4, 3, 5), (4, 3, 3), (10,)]
    assert layer_costs(network, x, "flops") == [2 * 15 * 4 * 18, 2 * 9 * 4 * 12, 2 * 36 * 10]


def test_sequences() -> None:
    network = build(CustomConfig(target="tests.helpers.factories.sequences"), (6,), 10, seed=1)
    tokens = torch.randint(10, (2, 6))
    assert output_shapes(network, tokens) == [(6, 4), (6, 8), (6, 10)]
    assert layer_costs(network, tokens, "flops") == [1, 2 * 6 * 4 * 8, 2 * 6 * 8 * 10]


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("no_such_package.factory", {}, "target=no_such_package.factory: No module named 'no_such_package'"),
        ("torch.nope.factory", {}, "target=torch.nope.factory: No module named 'torch.nope'"),
        (
            "tests.helpers.factories.nope",
            {},
            "target=tests.helpers.factories.nope: module 'tests.helpers.factories' has no attribute 'nope'",
        ),
        ("tests.helpers.factories.NUMBER", {}, "target=tests.helpers.factories.NUMBER: must be callable, is int"),
        (
            "tests.helpers.factories.a_list",
            {},
            "target=tests.helpers.factories.a_list: must return an nn.Sequential, returned list",
        ),
        (
            "tests.helpers.factories.images",
            {"depth": 3},
            "args={'depth': 3}: got an unexpected keyword argument 'depth', for tests.helpers.factories.images",
        ),
        ("torch.nn.Linear", {}, "args={}: missing a required argument: 'in_features', for torch.nn.Linear"),
        ("builtins.dict", {}, "args={}: no signature found for builtin type <class 'dict'>, for builtins.dict"),
        (
            "tests.helpers.factories.in_place",
            {},
            "target=tests.helpers.factories.in_place: layer 1 must not change "
            "its input in place, begins with ReLU(inplace=True)",
        ),
    ],
)
def test_refused(target: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        custom(target, **args)
    assert str(error.value) == f"model.{message}"


def test_an_error_in_the_module_itself_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^model\.target=needs_more\.f: No module named 'no_such_dependency'$"):
        custom("needs_more.f")
