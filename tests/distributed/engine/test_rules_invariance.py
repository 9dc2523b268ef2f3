"""Associated learning and Pred-Sim: no timing and no placement changes a single bit of the result (section 2)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

Alone = Callable[..., dict[str, Any]]

# Dropout draws random numbers and batch norm keeps buffers: both must not depend on the placement either.
MLP = ("model.width=32", "model.dropout=0.2", "model.norm=batch")
CNN = (
    "model=cnn",
    "model.channels=[4,4,6,6]",
    "model.strides=[1,2,1,1]",
    "model.dropout=0.1",
    "algorithm.head.convolutions=1",
    "algorithm.head.width=6",
    "data.augment=true",
)
RULES = {
    "al": ("algorithm=al", "algorithm.dim=20"),
    "predsim": ("algorithm=predsim", "algorithm.beta=0.99"),
    "sim alone": ("algorithm=predsim", "algorithm.beta=1.0"),
}
BOTH = ("al", "predsim")


@pytest.fixture(scope="module")
def alone(pool: Pool) -> Alone:
    """The summary of one process."""
    return cache(lambda *overrides: summary_of(pool, 1, *overrides))


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("fingerprint", "test_accuracy", "block_accuracy", "effective_parameters", "affiliated_parameters"):
        assert found[key] == expected[key]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("rule", RULES)
def test_processes_change_nothing(pool: Pool, alone: Alone, rule: str, ranks: int) -> None:
    overrides = (*RULES[rule], *MLP)
    assert_equal(summary_of(pool, ranks, *overrides), alone(*overrides))


@pytest.mark.parametrize("rule", BOTH)
def test_processes_change_nothing_in_feature_maps(pool: Pool, alone: Alone, rule: str) -> None:
    overrides = (*RULES[rule], *CNN)
    assert_equal(summary_of(pool, 3, *overrides), alone(*overrides))


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("rule", BOTH)
def test_delays_and_queue_depth_change_nothing(pool: Pool, alone: Alone, rule: str, depth: int) -> None:
    overrides = (*RULES[rule], *MLP)
    assert_equal(summary_of(pool, 3, *overrides, f"engine.depth={depth}", delays=0.02, seed=depth), alone(*overrides))


@pytest.mark.parametrize(("blocks", "ranks"), [(1, 1), (5, 3)])
@pytest.mark.parametrize("rule", BOTH)
def test_uneven_runs_of_blocks(pool: Pool, alone: Alone, rule: str, blocks: int, ranks: int) -> None:
    overrides = (*RULES[rule], *MLP, f"blocks={blocks}")
    assert_equal(summary_of(pool, ranks, *overrides), alone(*overrides))


@pytest.mark.parametrize("rule", BOTH)
def test_neither_evaluation_nor_lag_is_part_of_the_result(alone: Alone, rule: str) -> None:
    """Labels do not age, and associated learning sends nothing down that could."""
    overrides = (*RULES[rule], *MLP)
    others = (
        ("train.evaluate_every=0", "engine.lag=1"),
        ("train.evaluate_every=1", "engine.lag=3"),
        ("engine.lag=exact",),
    )
    prints = {alone(*overrides, *other)["fingerprint"] for other in others}
    assert prints == {alone(*overrides)["fingerprint"]}


@pytest.mark.parametrize("rule", BOTH)
def test_options_of_the_result_change_it(alone: Alone, rule: str) -> None:
    own = (*RULES["al"][:1], "algorithm.dim=21") if rule == "al" else RULES["sim alone"]
    runs = [(*RULES[rule], *MLP, *other) for other in ((), ("seed=2",), ("train.steps=11",))]
    assert len({alone(*run)["fingerprint"] for run in (*runs, (*own, *MLP))}) == 1 + len(runs)


OPTIONS = {
    "muon": ("optimizer=muon", "optimizer.bias_lr_scale=4", "optimizer.bias_decay=false", "optimizer.weight_decay=0.1"),
    "average": ("optimizer.average=0.9",),
    "smoothing": ("algorithm.smoothing=0.2",),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_optimizer_do_not_see_the_placement(pool: Pool, alone: Alone, options: str) -> None:
    overrides = (*OPTIONS[options], *CNN, "engine.channels_last=true")
    assert_equal(summary_of(pool, 3, *overrides), alone(*overrides))
