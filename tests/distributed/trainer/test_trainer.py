"""The public Trainer: the same bits on any number of processes, and weights that leave."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from tests.helpers.networks import named as network
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks

RULES = {
    "bll": lambda: cf.BLL(head=cf.HeadConfig(convolutions=1)),
    "al": lambda: cf.AL(dim=12),
    "predsim": cf.PredSim,
    "own rule": lambda: cf.PerBlock(Readout, smoothing=0.1),
}


def data(samples: int = 160) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(4, (samples,), generator=generator)
    return F.one_hot(y, 6).float() * 2 + torch.randn(samples, 6, generator=generator) / 2, y


class Readout(cf.LocalRule):
    """A rule that is no part of the package: a linear classifier for every block."""

    def __init__(self, block: cf.BlockContext, smoothing: float) -> None:
        super().__init__()
        self.block = block.module
        self.classifier = nn.Identity() if block.is_top else nn.Linear(block.shape[-1], block.classes)
        self.smoothing = smoothing
        self.optimizer = block.optimizer(self.parameters())

    def forward_message(self, message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.a = self.block(message[0])
        return (self.a.detach(),)

    def update(self, part: cf.BatchPart, message: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> dict[str, Tensor]:
        loss = F.cross_entropy(self.classifier(self.a), target[0], label_smoothing=self.smoothing)
        self.optimizer.backward_and_step(loss, part)
        return {"loss": loss.detach()}

    def predict(
        self, message: tuple[Tensor, ...], target: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], cf.Prediction]:
        a = self.block(message[0])
        return (a,), cf.Prediction.of(self.classifier(a))


def fit(rule: str = "bll", model: Any = network, **options: Any) -> dict[str, Any]:
    """Results of one rank after a small fit."""
    trainer = cf.Trainer(model, rule=RULES[rule](), optimizer=cf.AdamW(lr=1e-2), blocks=4, engine=engine())
    result = trainer.fit(data(), data(48), **{"epochs": 6, "batch_size": 16, **options})
    state = result.state_dict() if result.is_main else {}
    return {"summary": dict(result.summary), "is_main": result.is_main, "state": state}


def engine() -> cf.EngineConfig:
    return cf.EngineConfig(threads=1, timeout=30)


def accuracy(state: Mapping[str, Tensor]) -> float:
    model = network()
    model.load_state_dict(state)
    x, y = data(48)
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("rule", RULES)
def test_the_bits_and_weights_are_the_same_on_any_number_of_processes(pool: Pool, rule: str) -> None:
    alone = fit(rule)
    for ranks in (2, 4) if rule == "bll" else (3,):
        main, *others = on_ranks(pool, ranks, fit, rule)
        assert main["is_main"]
        assert not any(other["is_main"] or other["state"] for other in others)
        for found in (main, *others):
            assert found["summary"]["fingerprint"] == alone["summary"]["fingerprint"]
            assert found["summary"]["block_accuracy"] == alone["summary"]["block_accuracy"]
        # The output layer has no part in associated learning.
        names = {name for name in network().state_dict() if rule != "al" or not name.startswith("head.")}
        assert main["state"].keys() == alone["state"].keys() == names
        assert all(torch.equal(main["state"][name], tensor) for name, tensor in alone["state"].items())
    if rule != "al":  # whose prediction does not come from the network's own output layer
        assert accuracy(alone["state"]) == alone["summary"]["test_accuracy"] > 0.5


def fit_end_to_end(rule: Any, schedule: str) -> dict[str, Any]:
    trainer = cf.Trainer(network, rule=rule, blocks=4, schedule=schedule, engine=engine())
    result = trainer.fit(data(), data(48), epochs=2, batch_size=16, microbatches=4)
    return {"summary": dict(result.summary), "state": result.state_dict() if result.is_main else {}}


@pytest.mark.parametrize("rule", [cf.Backprop(), cf.FeedbackAlignment()], ids=["bp", "fa"])
def test_end_to_end_weights_leave_under_their_original_names(pool: Pool, rule: Any) -> None:
    alone = fit_end_to_end(rule, "auto")
    assert alone["state"].keys() == network().state_dict().keys()
    assert accuracy(alone["state"]) == alone["summary"]["test_accuracy"]
    two = on_ranks(pool, 2, fit_end_to_end, rule, "gpipe")[0]
    assert accuracy(two["state"]) == two["summary"]["test_accuracy"]


@pytest.mark.parametrize("rule", [cf.BLL(), cf.Backprop()], ids=["bll", "bp"])
def test_the_averages_of_the_weights_are_evaluated_and_leave(rule: Any) -> None:
    optimizer = cf.AdamW(lr=1e-2, average=0.9)
    trainer = cf.Trainer(network, rule=rule, optimizer=optimizer, blocks=4, engine=engine())
    result = trainer.fit(data(), data(48), epochs=4, batch_size=16)
    assert accuracy(result.state_dict()) == result.summary["test_accuracy"]
    plain = cf.Trainer(network, rule=rule, optimizer=cf.AdamW(lr=1e-2), blocks=4, engine=engine())
    other = plain.fit(data(), data(48), epochs=4, batch_size=16).state_dict()
    assert not all(torch.equal(other[name], tensor) for name, tensor in result.state_dict().items())


def fit_built(seeds: list[int]) -> str:
    """A module that every rank built by itself, under the seed of its rank."""
    torch.manual_seed(seeds[cf_rank()])
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fingerprint = fit(model=model)["summary"]["fingerprint"]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items()), "it stays as it is"
    return str(fingerprint)


def cf_rank() -> int:
    from counterflow.rank_info import RankInfo

    return RankInfo.from_env().rank


def refusal_of_built(seeds: list[int]) -> str:
    try:
        fit_built(seeds)
    except ValueError as error:
        return str(error)
    return ""


def test_a_built_module_must_be_the_same_on_all_ranks(pool: Pool) -> None:
    assert len({*on_ranks(pool, 2, fit_built, [5, 5]), fit_built([5])}) == 1
    refused = on_ranks(pool, 3, refusal_of_built, [5, 5, 6])
    assert refused == ["model: rank 2 was given other initial parameters than rank 0"] * 3


def test_nothing_is_written_without_a_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(validation=0.2, evaluate_every=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": cf.CheckpointConfig(every=5)}, "checkpoint.every=5: needs run_dir"),
        ({"trace": True}, "trace=True: needs run_dir"),
        ({"activations": 3}, "activations=3: needs run_dir"),
    ],
)
def test_what_is_to_be_written_needs_a_run_directory(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_a_run_directory_holds_the_run_and_refuses_another(tmp_path: Path) -> None:
    path = tmp_path / "run"
    done = fit(run_dir=path, checkpoint=cf.CheckpointConfig(every=5), activations=7)
    assert json.loads((path / "summary.json").read_text()) == done["summary"]
    assert {file.name for file in path.iterdir()} >= {"config.yaml", "metrics.jsonl", "activations.npz", "checkpoints"}
    with pytest.raises(cf.FinishedError, match="already holds a finished run"):
        fit(run_dir=path, checkpoint=cf.CheckpointConfig(every=5), activations=7)
    with pytest.raises(ValueError, match=r"holds a run of another configuration: algorithm\.name=bll there, predsim"):
        fit("predsim", run_dir=path)


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = fit(run_dir=tmp_path / "whole", checkpoint=cf.CheckpointConfig(every=20))
    saved = tmp_path / "whole" / "checkpoints" / "batch-00000040"
    part = fit(run_dir=tmp_path / "part", checkpoint=cf.CheckpointConfig(every=20), resume=str(saved))
    assert part["summary"]["resumed_after"] == 40
    assert part["summary"]["fingerprint"] == whole["summary"]["fingerprint"]


class Seen(cf.Callback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, run: cf.RunInfo) -> None:
        self.events.append(f"start of {run.batches}")

    def on_step(self, row: cf.StepMetrics) -> None:
        self.events.append(f"step {row.n}")

    def on_eval(self, row: cf.StepMetrics) -> None:
        self.events.append(f"{row.event} {row.n}")

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.events.append(f"end {summary['steps']}")

    def close(self) -> None:
        self.events.append("close")


def test_callbacks_see_the_run_in_order() -> None:
    seen = Seen()
    fit(steps=7, evaluate_every=4, log_every=3, validation=0.1, callbacks=[seen])
    assert seen.events == [
        *("start of 7", "step 0", "step 3", "validation 3", "step 6", "validation 6", "test 6", "end 7", "close")
    ]


class Failing(cf.Callback):
    def on_step(self, row: cf.StepMetrics) -> None:
        raise RuntimeError("no more")


def test_a_callback_that_fails_ends_the_run_by_its_name() -> None:
    with pytest.raises(cf.CallbackError, match=r"callback Failing\.on_step: RuntimeError: no more"):
        fit(epochs=2000, log_every=1, callbacks=[Failing()])


def test_without_test_data_nothing_is_tested() -> None:
    trainer = cf.Trainer(network, blocks=2, engine=engine())
    result = trainer.fit(data(), steps=5, batch_size=16)
    assert result.test_accuracy is None
    assert result.block_accuracy is None
    assert result.validation_accuracy is None
    held_out = trainer.fit(data(), steps=5, batch_size=16, validation=0.25)
    assert held_out.test_accuracy is None
    assert held_out.validation_accuracy is not None


def test_data_by_name() -> None:
    options = cf.DataConfig(name="digits", limit=200)
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    result = cf.Trainer(small, blocks=2, engine=engine()).fit(options, steps=5)
    assert result.summary["data"] == "digits"
    assert len(result.block_accuracy or []) == 2


def test_save_writes_the_state(tmp_path: Path) -> None:
    result = cf.Trainer(network, blocks=2, engine=engine()).fit(data(), data(48), steps=5, batch_size=16)
    result.save(tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert state.keys() == result.state_dict().keys()
