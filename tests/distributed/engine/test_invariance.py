"""docs/concepts.md, Semantics: no timing and no placement changes a single bit of the result."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

Alone = Callable[..., dict[str, Any]]

# Dropout draws random numbers and batch norm keeps buffers: both must not depend on the placement either.
MLP = ("model.dropout=0.2", "model.norm=batch")
CNN = (
    "model=cnn",
    "model.channels=[4,4,6,6]",
    "model.strides=[1,2,1,1]",
    "model.dropout=0.1",
    "algorithm.head.convolutions=1",
    "algorithm.head.width=6",
    "data.augment=true",
)
CATEGORICAL = ("algorithm.latent.family=categorical", "algorithm.feedback.kind=linear", "algorithm.feedback.refresh=3")


@pytest.fixture(scope="module")
def alone(pool: Pool) -> Alone:
    """The summary of one process."""
    return cache(lambda *overrides: summary_of(pool, 1, *overrides))


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("fingerprint", "test_accuracy", "block_accuracy"):
        assert found[key] == expected[key]


@pytest.mark.parametrize(("ranks", "lag"), [(2, 2), (3, 1), (4, 3)])
def test_processes_change_nothing(pool: Pool, alone: Alone, ranks: int, lag: int) -> None:
    overrides = (*MLP, f"engine.lag={lag}")
    assert_equal(summary_of(pool, ranks, *overrides), alone(*overrides))


@pytest.mark.parametrize("overrides", [CNN, CATEGORICAL], ids=["cnn", "categorical"])
def test_processes_change_nothing_in_other_models(pool: Pool, alone: Alone, overrides: tuple[str, ...]) -> None:
    assert_equal(summary_of(pool, 3, *overrides), alone(*overrides))


@pytest.mark.parametrize(("depth", "lag"), [(1, 1), (1, 3), (4, 2)])
def test_delays_and_queue_depth_change_nothing(pool: Pool, alone: Alone, depth: int, lag: int) -> None:
    overrides = (*MLP, f"engine.lag={lag}")
    delayed = summary_of(pool, 4, *overrides, f"engine.depth={depth}", delays=0.02, seed=depth)
    assert_equal(delayed, alone(*overrides))


def test_more_room_for_targets_changes_nothing(pool: Pool, alone: Alone) -> None:
    assert_equal(summary_of(pool, 2, *MLP, "engine.lag=2", "engine.target_depth=5"), alone(*MLP, "engine.lag=2"))


def test_neither_evaluations_nor_reports_change_anything(alone: Alone) -> None:
    """Against those after every fifth batch, and of every fourth."""
    expected = alone(*MLP, "engine.lag=2")["fingerprint"]
    for options in (("train.evaluate_every=0", "train.log_every=1"), ("train.evaluate_every=1", "train.log_every=100")):
        assert alone(*MLP, *options)["fingerprint"] == expected


@pytest.mark.parametrize("other", ["seed=2", "engine.lag=1", "engine.lag=3", "engine.lag=exact", "train.steps=11"])
def test_options_of_the_result_change_it(alone: Alone, other: str) -> None:
    assert alone(*MLP, other)["fingerprint"] != alone(*MLP, "engine.lag=2")["fingerprint"]


def test_one_block_is_a_network_with_a_local_rule_at_its_top(pool: Pool) -> None:
    assert summary_of(pool, 1, "blocks=1", "train.steps=60", "train.evaluate_every=0")["test_accuracy"] > 0.85


@pytest.mark.parametrize(("blocks", "ranks"), [(3, 2), (5, 3)])
def test_uneven_runs_of_blocks(pool: Pool, alone: Alone, blocks: int, ranks: int) -> None:
    overrides = (*MLP, f"blocks={blocks}")
    assert_equal(summary_of(pool, ranks, *overrides), alone(*overrides))


def test_the_summary_has_the_keys_that_other_programs_read(pool: Pool) -> None:
    summary = summary_of(pool, 3, "train.steps=44", "train.evaluate_every=0")
    assert {key: summary[key] for key in ("algorithm", "model", "data", "blocks", "ranks", "seed", "steps")} == {
        "algorithm": "bll",
        "model": "mlp",
        "data": "digits",
        "blocks": 4,
        "ranks": 3,
        "seed": 1,
        "steps": 44,
    }
    assert len(summary["block_accuracy"]) == 4
    assert summary["block_accuracy"][-1] == summary["test_accuracy"] > 0.5
    assert len(summary["wait_fraction"]) == 3
    assert all(0 <= share < 1 for share in summary["wait_fraction"])
    assert summary["samples_per_second"] > 0
    assert len(summary["fingerprint"]) == 64
    assert summary["torch_version"]
    assert "git_commit" in summary
