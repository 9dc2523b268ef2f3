"""Weights from files: of another run of the network, and of torchvision."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from counterflow.config import ModelConfig, ResNet20Config, ResNetConfig
from counterflow.models import build
from counterflow.models.initial_weights import load_initial_weights


def network(classes: int = 4) -> nn.Sequential:
    middle = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=nn.Linear(6, 5), middle=middle, head=nn.Sequential(nn.Linear(3, classes))))


def state(classes: int = 4) -> dict[str, Tensor]:
    """Weights that no start has."""
    return {
        name: torch.rand_like(value) + 7 if value.is_floating_point() else value + 5
        for name, value in network(classes).state_dict().items()
    }


def config(path: Path) -> ModelConfig:
    return ModelConfig(name="any", init=str(path))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_all_weights_and_buffers_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    given, path = state(), tmp_path / f"model.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(given, path)
    ours = network()
    assert load_initial_weights(ours, config(path)) == []
    assert same(dict(ours.state_dict()), given)


def test_numbers_of_another_precision_are_converted(tmp_path: Path) -> None:
    given = {name: value.half() if value.is_floating_point() else value for name, value in state().items()}
    save_file(given, tmp_path / "half.safetensors")
    ours = network()
    load_initial_weights(ours, config(tmp_path / "half.safetensors"))
    assert ours.stem.weight.dtype == torch.float32
    assert torch.equal(ours.stem.weight, given["stem.weight"].float())


@pytest.mark.parametrize("there", [{}, {"head.0.bias": torch.ones(4)}, {"head.0.weight": torch.ones(9, 3)}])
def test_an_output_layer_that_does_not_fit_stays_as_it_is(tmp_path: Path, there: dict[str, Tensor]) -> None:
    given = {name: value for name, value in state().items() if not name.startswith("head.")}
    save_file(given | there, tmp_path / "other.safetensors")
    ours = network()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    assert load_initial_weights(ours, config(tmp_path / "other.safetensors")) == ["head.0.weight", "head.0.bias"]
    assert same(dict(ours.state_dict()), before | given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem.weight": None}, "stem.weight is missing"),
        ({"stem.weight": None, "middle.0.bias": None}, "stem.weight is missing (and 1 more)"),
        ({"stem.bias": torch.ones(6)}, "stem.bias is float32 [6], must be float32 [5]"),
        ({"stem.bias": torch.ones(5, dtype=torch.int8)}, "stem.bias is int8 [5], must be float32 [5]"),
        ({"tail.bias": torch.ones(5), "a": torch.ones(5)}, "a is not in the network (and 1 more)"),
        ({"middle.1.running_mean": None, "a": torch.ones(5)}, "middle.1.running_mean is missing (and 1 more)"),
        ({"conv1.weight": torch.ones(5)}, "conv1.weight is not in the network"),
    ],
)
def test_other_names_and_shapes_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: value for name, value in (state() | changes).items() if value is not None}, path)
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        load_initial_weights(network(), config(path))
    assert str(error.value) == f"model.init={path}: {message}"


class Code:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", None, "No such file or directory"),
        ("a.pt", None, "No such file or directory"),
        ("a.safetensors", b"", "SafetensorError"),
        ("a.safetensors", b"no such format at all", "SafetensorError"),
        ("a.pt", b"no such format at all", "UnpicklingError"),
        ("a.pt", {"a": Code()}, "UnpicklingError"),
        ("a.pt", {"state_dict": {"a": torch.ones(1)}}, "must hold a state dict, tensors by name"),
        ("a.pth", torch.ones(3), "must hold a state dict, tensors by name"),
    ],
)
def test_files_that_hold_no_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, message: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"^model.init={path}: ") as error:
        load_initial_weights(network(), config(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model.init=a.bin: must be a file .safetensors, .pt or .pth$"):
        ModelConfig(name="any", init="a.bin")


def torchvisions(classes: int = 7) -> tuple[nn.Module, dict[str, Tensor]]:
    """Torchvision's network, and its state without counters, as the files that torchvision offers have it."""
    theirs = resnet18(num_classes=classes).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return theirs, {n: v for n, v in theirs.state_dict().items() if not n.endswith("num_batches_tracked")}


def test_torchvisions_weights_give_torchvisions_outputs(tmp_path: Path) -> None:
    theirs, given = torchvisions()
    torch.save(given, tmp_path / "resnet18.pth")
    options = ResNetConfig(stem="imagenet", init=str(tmp_path / "resnet18.pth"))
    ours = build(options, (3, 40, 56), 7, seed=0).eval()
    assert load_initial_weights(ours, options) == []
    x = torch.randn(2, 3, 40, 56)
    assert torch.equal(ours(x), theirs(x))


def test_torchvisions_weights_for_other_classes(tmp_path: Path) -> None:
    theirs, given = torchvisions()
    save_file(given, tmp_path / "resnet18.safetensors")
    options = ResNetConfig(stem="imagenet", init=str(tmp_path / "resnet18.safetensors"))
    ours = build(options, (3, 40, 56), 3, seed=0).eval()
    assert load_initial_weights(ours, options) == ["9.2.weight", "9.2.bias"]
    theirs.fc = ours[9][2]
    x = torch.randn(2, 3, 40, 56)
    assert torch.equal(ours(x), theirs(x))


def test_what_torchvision_has_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(torchvisions()[1], path)
    small = ResNetConfig(init=str(path))
    with pytest.raises(
        ValueError, match=r"conv1\.weight is .*, must be .*; torchvision's stem is model.stem=imagenet$"
    ):
        load_initial_weights(build(small, (3, 32, 32), 7, seed=0), small)
    other = ResNet20Config(init=str(path))
    with pytest.raises(ValueError, match=r": 0\.0\.weight is missing \(and \d+ more\)$"):
        load_initial_weights(build(other, (3, 32, 32), 7, seed=0), other)
