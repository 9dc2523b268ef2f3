"""Blocks without parameters, such as a flattening or a pooling alone, train like all others."""

import pytest
from torch import nn

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

RUN = ("model=custom", "train.evaluate_every=0", "optimizer.lr=0.01")
LOCAL = {"bll": ("algorithm=bll",), "al": ("algorithm=al",), "predsim": ("algorithm=predsim",)}
ASYNCHRONOUS = {name: ("algorithm=bp", f"schedule={name}") for name in ("naive", "pipedream")}


def middle() -> nn.Sequential:
    """Digits, with a pooling and a flattening between layers that learn."""
    convolution = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(convolution, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def ends() -> nn.Sequential:
    """Digits, with nothing to learn in the lowest and in the highest layer."""
    hidden = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
    return nn.Sequential(nn.Flatten(), hidden, nn.Linear(32, 10), nn.Hardtanh(-20.0, 20.0))


def options(factory: str, *overrides: str) -> tuple[str, ...]:
    return (*RUN, f"model.target={__name__}.{factory}", "model.cut=[1,1,1,1]", *overrides)


@pytest.mark.parametrize("factory", ["middle", "ends"])
@pytest.mark.parametrize("rule", [*LOCAL, *ASYNCHRONOUS])
def test_two_processes_give_the_bits_of_one(pool: Pool, rule: str, factory: str) -> None:
    overrides = options(factory, *(LOCAL | ASYNCHRONOUS)[rule])
    alone, together = (summary_of(pool, ranks, *overrides) for ranks in (1, 2))
    assert together["fingerprint"] == alone["fingerprint"]
    assert together["block_accuracy"] == alone["block_accuracy"]
    assert alone["fingerprint"] != summary_of(pool, 1, *overrides, "train.steps=11")["fingerprint"]


@pytest.mark.parametrize("factory", ["middle", "ends"])
def test_backprop_learns_on_one_process_and_on_a_pipeline(pool: Pool, factory: str) -> None:
    overrides = options(factory, "algorithm=bp", "train.steps=44", "optimizer.lr=0.02")
    alone = summary_of(pool, 1, *overrides)
    gpipe, one_f_one_b = (summary_of(pool, 2, *overrides, f"schedule={name}") for name in ("gpipe", "1f1b"))
    assert gpipe["fingerprint"] == one_f_one_b["fingerprint"]
    assert gpipe["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.05)
    assert alone["test_accuracy"] > 0.7


def test_a_stage_without_parameters_at_the_bottom_of_a_pipeline(pool: Pool) -> None:
    overrides = (*RUN, "train.steps=44", f"model.target={__name__}.ends", "blocks=2", "model.cut=[1,3]", "algorithm=bp")
    alone = summary_of(pool, 1, *overrides)
    assert summary_of(pool, 2, *overrides, "schedule=gpipe")["test_accuracy"] == pytest.approx(
        alone["test_accuracy"], abs=0.05
    )
