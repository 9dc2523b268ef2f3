"""A start from weights in a file, and layers that do not learn: the same on any number of processes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import counterflow as cf
from counterflow.config import FastCNNConfig
from counterflow.rank_info import RankInfo
from tests.distributed.trainer.test_trainer import data, network
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks

ASYNCHRONOUS = ("naive", "pipedream")
RULES = {"bll": cf.BLL, "bp": cf.Backprop, "fa": cf.FeedbackAlignment} | dict.fromkeys(ASYNCHRONOUS, cf.Backprop)


def fit(rule: str, model: Any = network, lr: float = 0.1, **options: Any) -> dict[str, Any]:
    """Result of one rank after a small fit; ``init`` and ``freeze`` are the Trainer's, all others are of the fit."""
    trainer = cf.Trainer(
        model,
        rule=RULES[rule](),
        optimizer=cf.SGD(lr=lr),
        blocks=3,
        init=options.pop("init", None),
        freeze=options.pop("freeze", None),
        schedule=rule if rule in ASYNCHRONOUS else "auto",
        engine=cf.EngineConfig(threads=1, timeout=30),
    )
    result = trainer.fit(
        data(), data(48), epochs=2, steps=12, batch_size=16, microbatches=4, evaluate_every=5, **options
    )
    return {"fingerprint": result.fingerprint, "state": result.state_dict() if result.is_main else {}}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights that no start has, and all of whose batch norms have seen something."""
    path = tmp_path / "start.safetensors"
    save_file({name: value + 0.1 if value.is_floating_point() else value for name, value in start().items()}, path)
    return path


def start(seed: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(network().state_dict())


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("rule", ["bll", "bp"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_training_starts_with_the_weights_of_the_file(pool: Pool, weights: Path, rule: str, ranks: int) -> None:
    """Without a learning rate, and with the batch norm frozen, nothing ever changes them."""
    state = on_ranks(pool, ranks, fit_with, rule, {"init": weights, "freeze": ["stem"], "lr": 0.0})[0]["state"]
    assert_equal(state, load_file(weights))


@pytest.mark.parametrize("rule", RULES)
def test_frozen_layers_stay_and_placement_changes_nothing(pool: Pool, weights: Path, rule: str) -> None:
    given = load_file(weights)
    options = {"init": weights, "freeze": ["stem", 2]}
    alone = fit(rule, **options)
    for ranks in (2, 3):
        found = on_ranks(pool, ranks, fit_with, rule, options)[0]
        if rule in ("bll", *ASYNCHRONOUS):
            assert found["fingerprint"] == alone["fingerprint"]
        for name, value in found["state"].items():  # a pipeline sums the gradients of micro-batches, in another order
            torch.testing.assert_close(value, alone["state"][name], rtol=1e-4, atol=1e-5)
    for name, value in alone["state"].items():
        assert torch.equal(value, given[name]) == (not name.startswith("head.")), name


def fit_with(rule: str, options: dict[str, Any]) -> dict[str, Any]:
    return fit(rule, **options)


@pytest.mark.parametrize("rule", RULES)
def test_layers_below_a_frozen_one_learn(pool: Pool, weights: Path, rule: str) -> None:
    given = load_file(weights)
    state = on_ranks(pool, 3, fit_with, rule, {"init": weights, "freeze": [2]})[0]["state"]
    same = {name for name in given if torch.equal(state[name], given[name])}
    assert same - {"stem.0.bias"} == {"middle.0.weight", "middle.0.bias"}  # batch norm cancels the bias before it


def test_frozen_layers_compute_as_in_evaluation() -> None:
    """A network whose lower half is frozen, batch norm and dropout included, learns as its upper half alone does from
    what the lower half computes in evaluation."""
    x, y = data()
    torch.manual_seed(1)
    lower = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.5))
    nn.init.uniform_(lower[1].running_var, 0.5, 2)
    upper = [nn.Sequential(nn.Linear(9, 8), nn.Tanh()), nn.Linear(8, 4)]
    frozen = cf.Trainer(
        nn.Sequential(lower, *upper),
        freeze=[0],
        rule=cf.Backprop(),
        blocks=1,
        engine=cf.EngineConfig(threads=1),
    ).fit((x, y), epochs=2, batch_size=16)
    with torch.no_grad():
        features = lower.eval()(x)
    alone = cf.Trainer(nn.Sequential(*upper), rule=cf.Backprop(), blocks=1, engine=cf.EngineConfig(threads=1)).fit(
        (features, y), epochs=2, batch_size=16
    )
    ours, theirs = frozen.state_dict(), alone.state_dict()
    for name, value in theirs.items():
        layer, _, rest = name.partition(".")
        torch.testing.assert_close(ours[f"{int(layer) + 1}.{rest}"], value)


def test_weights_of_training_samples_are_those_of_the_file(tmp_path: Path) -> None:
    """Whitening filters are not initialised again: the new data may be others."""
    options = FastCNNConfig(widths=[4, 4, 4])
    digits = cf.DataConfig(name="digits", limit=64)
    engine = cf.EngineConfig(threads=1)
    before = cf.Trainer(options, rule=cf.Backprop(), blocks=1, engine=engine).fit(digits, steps=1).state_dict()
    other = {name: 2 * value if name == "0.0.weight" else value for name, value in before.items()}
    save_file({name: value.contiguous() for name, value in other.items()}, tmp_path / "fast.safetensors")
    again = cf.Trainer(options, init=tmp_path / "fast.safetensors", rule=cf.Backprop(), blocks=1, engine=engine)
    assert torch.equal(again.fit(digits, steps=1).state_dict()["0.0.weight"], other["0.0.weight"])


def test_a_network_for_other_classes_starts_with_all_but_the_output_layer(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = load_file(weights)
    save_file(given | {"head.weight": torch.ones(9, 8), "head.bias": torch.ones(9)}, weights)
    state = fit("bll", init=weights, freeze=["stem"], lr=0.0)["state"]
    fresh = {name: value for name, value in fit("bll", lr=0.0)["state"].items() if name.startswith("head.")}
    assert_equal(state, {**given, **fresh})
    assert [record.getMessage() for record in caplog.records] == [
        f"model.init={weights}: head.weight and head.bias do not fit it, and start at random"
    ]


def resume(folder: str, start: str) -> dict[str, Any]:
    checkpoint = cf.CheckpointConfig(every=4, keep=9)
    return fit("bll", init=start, freeze=["stem"], run_dir=folder, checkpoint=checkpoint)


def test_a_run_goes_on_without_the_file(pool: Pool, tmp_path: Path, weights: Path) -> None:
    whole = resume(str(tmp_path / "run"), str(weights))
    run = tmp_path / "run"
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "batch-00000012")
    weights.unlink()
    assert on_ranks(pool, 2, resume, str(run), str(weights))[0]["fingerprint"] == whole["fingerprint"]


def test_a_run_whose_checkpoints_are_damaged_begins_with_the_file_again(
    pool: Pool, tmp_path: Path, weights: Path
) -> None:
    run = tmp_path / "run"
    whole = resume(str(run), str(weights))
    (run / "summary.json").unlink()
    for file in run.glob("checkpoints/*/block-*.pt"):
        file.write_bytes(b"")
    assert on_ranks(pool, 2, resume, str(run), str(weights))[0]["fingerprint"] == whole["fingerprint"]


def refusal_of_own_file(folder: str) -> str:
    path = Path(folder) / f"{RankInfo.from_env().rank}.safetensors"
    save_file(start(RankInfo.from_env().rank), path)
    try:
        fit("bll", init=path)
    except ValueError as error:
        return str(error)
    return ""


def test_all_ranks_must_read_the_same_weights(pool: Pool, tmp_path: Path) -> None:
    line = "model: rank 1 was given other initial parameters than rank 0"
    assert on_ranks(pool, 2, refusal_of_own_file, str(tmp_path)) == [line] * 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(ValueError, match=f"^model.init={path}: cannot be read \\(.*No such file or directory.*\\)$"):
        fit("bll", init=path)
