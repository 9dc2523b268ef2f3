"""Exports compute what the network does, and are refused where they would not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from counterflow.config import ResNet50Config, ResNetConfig
from counterflow.inference.exporters import export, torchvision_resnet
from counterflow.inference.model_files import ModelDescription
from counterflow.inference.predictor import Normalisation, Predictor
from counterflow.models import build

DESCRIBED = ModelDescription(
    model={"name": "mlp"},
    algorithm={"name": "bp"},
    cut=[1],
    input_shape=[1, 4, 3],
    input_type="uint8",
    mean=[100.0],
    std=[50.0],
    label_shape=[],
    class_names=["left", "right"],
    parameters=[],
    unused=[],
    exits=[1],
    predicts_down=False,
    fingerprint="f",
)
WITH_TORCH_ALONE = """
import sys, json, torch
class Counterflow:  # whatever imports it fails
    def find_spec(self, name, *_):
        assert not name.startswith("counterflow"), name
sys.meta_path.insert(0, Counterflow())
extra = {"class_names.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
names = json.loads(extra["class_names.json"])
inputs = torch.load(sys.argv[2])
print(json.dumps([program(inputs[:size]).tolist() for size in (1, 7)]), names)
"""


def convolutional() -> Predictor:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    norm = Normalisation([100.0, 110.0, 120.0], [50.0, 60.0, 70.0])
    return Predictor(network, nn.Identity(), norm, list("abcde"), (3, 6, 5), torch.uint8).eval()


def test_safetensors_hold_the_weights_and_what_inputs_and_outputs_mean(images: Predictor, tmp_path: Path) -> None:
    export(images, tmp_path / "x.safetensors", "safetensors", DESCRIBED)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(file.keys()) == ["1.weight"]
        assert torch.equal(file.get_tensor("1.weight"), images.network[1].weight)
        metadata = file.metadata()
    assert {name: json.loads(text) for name, text in metadata.items()} == {
        "class_names": ["left", "right"],
        "mean": [100.0],
        "std": [50.0],
    }
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o444 == 0o444


@pytest.mark.slow
def test_pt2_runs_with_torch_alone(tmp_path: Path) -> None:
    predictor = convolutional()
    assert "differ by at most" in export(predictor, tmp_path / "x.pt2", "pt2", DESCRIBED)
    inputs = predictor.random_inputs(7)
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", WITH_TORCH_ALONE, str(tmp_path / "x.pt2"), str(tmp_path / "inputs.pt")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100, cwd=tmp_path).stdout
    scores, _, names = output.strip().partition("]] ")
    one, seven = (torch.tensor(rows) for rows in json.loads(scores.split("\n")[-1] + "]]"))
    assert names == "['a', 'b', 'c', 'd', 'e']"
    torch.testing.assert_close(one, predictor(inputs[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seven, predictor(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx_runs_in_onnxruntime(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    predictor = convolutional()
    assert "onnxruntime" in export(predictor, tmp_path / "x.onnx", "onnx", DESCRIBED)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    for size in (1, 7):
        inputs = predictor.random_inputs(size)
        (scores,) = session.run(None, {"inputs": inputs.numpy()})
        np.testing.assert_allclose(scores, predictor(inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert json.loads(properties["class_names"]) == list("abcde")


def test_an_export_that_computes_something_else_is_refused(
    images: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return images(inputs) + 1e-3

    program = SimpleNamespace(module=Wrong)
    for name in ("export", "save", "load"):
        monkeypatch.setattr(torch.export, name, lambda *_, **__: program)
    with pytest.raises(
        ValueError, match=r"^torch.export computes other scores: they differ by 0.001 for a batch of 1$"
    ):
        export(images, tmp_path / "x.pt2", "pt2", DESCRIBED)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(images: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^format=hdf5: allowed are safetensors, pt2, onnx, torchvision"):
        export(images, tmp_path / "x", "hdf5", DESCRIBED)


def test_a_missing_package_is_named(images: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"^format=onnx: needs onnx: pip install 'counterflow\[onnx\]'$"):
        export(images, tmp_path / "x.onnx", "onnx", DESCRIBED)


RESNET = {"name": "resnet18", "stages": [1, 1, 1, 1], "width": 64, "stem": "small", "stride": 1}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ResNetConfig(stages=[1, 2, 1, 1]), {"name": "resnet18", "stages": [1, 2, 1, 1], "stem": "small", "stride": 1}),
        (ResNetConfig(stages=[1, 1, 1, 1], stem="imagenet"), {**RESNET, "stem": "imagenet"}),
        (
            ResNet50Config(stages=[1, 1, 1, 2], stride=2),
            {**RESNET, "name": "resnet50", "stages": [1, 1, 1, 2], "stride": 2},
        ),
    ],
)
def test_torchvisions_own_class_computes_the_same(
    config: ResNetConfig, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = build(config, (3, 16, 16), 4, seed=0)
    for module in network.modules():  # as after training
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    norm = Normalisation([100.0] * 3, [50.0] * 3)
    predictor = Predictor(network, nn.Identity(), norm, list("abcd"), (3, 16, 16), torch.uint8).eval()
    described = replace(DESCRIBED, model={"width": 64, **options}, input_shape=[3, 16, 16], class_names=list("abcd"))
    checked = export(predictor, tmp_path / "x.pth", "torchvision", described)
    assert ("maxpool is an Identity" in checked) == (config.stem == "small")
    theirs = torchvision_resnet(described)
    theirs.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    inputs = predictor.random_inputs(5)
    torch.testing.assert_close(theirs.eval()(norm(inputs)), predictor(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": {"name": "mlp"}}, "is for model=resnet18 and resnet50"),
        ({"model": {**RESNET, "width": 32}}, "is for model=resnet18 and resnet50"),
        ({"model": {**RESNET, "stages": [1, 1, 1]}}, "is for model=resnet18 and resnet50"),
        ({"model": RESNET, "unused": ["5.2.weight"]}, "is for networks that predict by their own output layer"),
    ],
)
def test_networks_that_are_not_torchvisions_are_refused(
    images: Predictor, tmp_path: Path, change: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=f"^format=torchvision: {error}"):
        export(images, tmp_path / "x.pth", "torchvision", replace(DESCRIBED, **change))
