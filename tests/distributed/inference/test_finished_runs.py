"""Networks of finished runs: loaded, they predict as the run did."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import counterflow as cf
from counterflow.cli import evaluate
from counterflow.data import load as load_data
from tests.helpers.configs import configured
from tests.helpers.networks import named as network
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks
from tests.helpers.runs import summary_of

RULES: dict[str, Any] = {
    "bll": lambda: cf.BLL(),
    "al": lambda: cf.AL(dim=12),
    "predsim": lambda: cf.PredSim(),
    "similarity alone": lambda: cf.PredSim(beta=1.0),
    "bp": lambda: cf.Backprop(),
    "fa": lambda: cf.FeedbackAlignment(),
}
EXITS = {"similarity alone": [3], "bp": [3], "fa": [3]}


def data(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    y = torch.randint(4, (samples,), generator=generator)
    return F.one_hot(y, 6).float() * 2 + torch.randn(samples, 6, generator=generator), y


def fit(rule: str, folder: str, model: Any = network) -> dict[str, Any]:
    engine = cf.EngineConfig(threads=1, timeout=30)
    trainer = cf.Trainer(model, rule=RULES[rule](), optimizer=cf.AdamW(lr=1e-2), blocks=3, engine=engine)
    return dict(trainer.fit(data(160), data(64), epochs=10, batch_size=16, run_dir=folder).summary)


def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return float((net(inputs).argmax(-1) == labels).double().mean())


@pytest.fixture(scope="module", params=RULES)
def run(request: pytest.FixtureRequest, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return request.param, folder, on_ranks(pool, 2, fit, request.param, str(folder))[0]


def test_every_exit_predicts_as_its_block_did(run: tuple[str, Path, dict[str, Any]]) -> None:
    rule, folder, summary = run
    assert [e["block"] for e in summary["exits"]] == EXITS.get(rule, [1, 2, 3])
    for one in summary["exits"]:
        block = one["block"]
        found = accuracy(cf.load(folder, blocks=block), *data(64))
        assert found == one["test_accuracy"] == summary["block_accuracy"][block - 1]
    whole = cf.load(folder)
    assert accuracy(whole, *data(64)) == summary["test_accuracy"] > 0.5
    assert not whole.training
    assert not any(p.requires_grad for p in whole.parameters())


def test_an_exit_costs_more_the_higher_it_is(run: tuple[str, Path, dict[str, Any]]) -> None:
    _, _, summary = run
    flops = [one["flops"] for one in summary["exits"]]
    assert flops == sorted(flops)
    # Of one sample: twice the products of the linear layers, and of the readout.
    top = 2 * (6 * 9 + 9 * 8) + (0 if run[0] == "al" else 2 * 8 * 4)
    decoders = 2 * (8 * 12 + 12 * 12 + 12 * 12 + 12 * 4) if run[0] == "al" else 0
    assert flops[-1] == top + decoders


def test_the_weights_have_the_networks_own_names(run: tuple[str, Path, dict[str, Any]]) -> None:
    rule, folder, _ = run
    described = json.loads((folder / "model.json").read_text())
    names = list(network().state_dict())
    unused = ["head.weight", "head.bias"] if rule == "al" else []
    assert described["unused"] == unused
    assert described["parameters"] == [name for name in names if name not in unused]
    state = load_file(folder / "model.safetensors")
    own = network()
    own.load_state_dict(state, strict=rule != "al")
    own.eval()
    if rule != "al":
        inputs, _ = data(64)
        assert torch.equal(own(inputs), cf.load(folder)(inputs))


def test_a_network_that_was_built_by_hand_receives_the_weights(run: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, summary = run
    own = network()
    found = cf.load(folder, model=own)
    assert accuracy(found, *data(64)) == summary["test_accuracy"]
    assert torch.equal(own.get_parameter("stem.0.weight"), load_file(folder / "model.safetensors")["stem.0.weight"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda net: net.append(nn.Linear(4, 4)),
            "it has no 4.bias",
        ),
        (lambda net: delattr(net, "middle"), "the network has no middle.0.bias"),
        (
            lambda net: net.__setitem__(2, nn.Sequential(nn.Linear(9, 7))),
            r"middle.0.bias has shape \[8\], in the network \[7\]",
        ),
    ],
)
def test_another_architecture_is_refused(run: tuple[str, Path, dict[str, Any]], change: Any, error: str) -> None:
    own = network()
    change(own)
    with pytest.raises(ValueError, match=f"^model.safetensors: is of another architecture: {error}$"):
        cf.load(run[1], model=own)


def test_an_exit_that_is_none_is_refused(run: tuple[str, Path, dict[str, Any]]) -> None:
    rule, folder, _ = run
    allowed = ", ".join(map(str, EXITS.get(rule, [1, 2, 3])))
    with pytest.raises(ValueError, match=rf"^blocks=4: allowed are {allowed}, the blocks of \S+ with a prediction"):
        cf.load(folder, blocks=4)


def test_a_network_of_no_importable_factory_has_to_be_passed(tmp_path: Path) -> None:
    built = network()
    fit("bll", str(tmp_path / "built"), built)
    fit("bll", str(tmp_path / "lambda"), lambda: network())
    for folder in (tmp_path / "built", tmp_path / "lambda"):
        with pytest.raises(ValueError, match=r"^run=\S+: its network, \S+, cannot be imported; build it, and pass it"):
            cf.load(folder)
        assert cf.load(folder, model=network()).network[0][0].weight.shape == (9, 6)


@pytest.mark.parametrize(
    "options",
    [
        ("model=cnn", "model.channels=[8,8,8]", "model.strides=[1,2,1]"),
        ("model=fastcnn", "model.widths=[8,8]", "optimizer=muon", "optimizer.average=0.9", "engine.channels_last=true"),
        ("model=fastcnn", "model.widths=[8,8]", "algorithm=bp", "optimizer.average=0.9"),
        ("model=resnet18", "model.width=4", "algorithm=predsim", "algorithm.similarity=layer"),
        ("model=transformer", "data=reverse", "model.width=16"),
        ("model=transformer", "data=reverse", "model.width=16", "algorithm=al", "train.steps=3"),
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_networks_of_the_package_load_by_themselves(pool: Pool, tmp_path: Path, options: tuple[str, ...]) -> None:
    chosen = ("blocks=3", *options)
    summary = summary_of(pool, 3, *chosen, directory=tmp_path / "run")
    dataset = load_data(configured(*chosen).data)
    assert dataset.test is not None
    for one in summary["exits"]:
        found = accuracy(cf.load(tmp_path / "run", blocks=one["block"]), dataset.test.inputs, dataset.test.labels)
        assert found == pytest.approx(one["test_accuracy"], abs=1e-12)


def test_classes_keep_their_names(tmp_path: Path) -> None:
    class Named(torch.utils.data.TensorDataset):
        classes = ("a", "b", "c", "d")

    trainer = cf.Trainer(network, blocks=2, engine=cf.EngineConfig(threads=1))
    trainer.fit(Named(*data(64)), steps=2, batch_size=16, run_dir=tmp_path / "run")
    assert cf.load(tmp_path / "run").class_names == ("a", "b", "c", "d")


def test_the_best_weights_load_too(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("blocks=3", "checkpoint.best=true", "data.validation=0.2", "optimizer.lr=0.02", "train.evaluate_every=3")
    summary = summary_of(pool, 3, *options, directory=tmp_path / "run")
    held_out = load_data(configured(*options).data).validation
    assert held_out is not None
    best = cf.load(tmp_path / "run", best=True)
    assert accuracy(best, held_out.inputs, held_out.labels) == summary["best_validation_accuracy"]
    test = load_data(configured(*options).data).test
    assert test is not None
    assert evaluate.main([str(tmp_path / "run"), "--best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy(best, test.inputs, test.labels)
    with pytest.raises(
        ValueError, match=r"^best=True: \S+ keeps no readout of the best evaluation, allowed is the last"
    ):
        cf.load(tmp_path / "run", best=True, blocks=1)
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(ValueError, match=r"best.safetensors: cannot be read \(No such file or directory\)$"):
        cf.load(tmp_path / "run", best=True)


def test_a_description_of_an_unknown_network_is_refused(pool: Pool, tmp_path: Path) -> None:
    summary_of(pool, 1, directory=tmp_path)
    path = tmp_path / "model.json"
    content = json.loads(path.read_text())
    for change, error in (
        ({"name": "gpt9"}, "model=gpt9: allowed are mlp, cnn"),
        ({"depth": 3}, "depth: no such option"),
    ):
        path.write_text(json.dumps({**content, "model": {**content["model"], **change}}))
        with pytest.raises(ValueError, match=error):
            cf.load(tmp_path)
