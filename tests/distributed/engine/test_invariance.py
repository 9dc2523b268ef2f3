"""docs/architecture.md, Semantics: no timing and no placement changes a single bit of the result."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

EndToEnd = Callable[..., str]

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
def reference(pool: Pool) -> EndToEnd:
    """The fingerprint of one process."""
    return cache(lambda *overrides: summary_of(pool, 1, *overrides)["fingerprint"])


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_change_nothing(pool: Pool, reference: EndToEnd, ranks: int, lag: int) -> None:
    overrides = (*MLP, f"engine.lag={lag}")
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize("overrides", [CNN, CATEGORICAL], ids=["cnn", "categorical"])
def test_processes_change_nothing_in_other_models(pool: Pool, reference: EndToEnd, overrides: tuple[str, ...]) -> None:
    assert summary_of(pool, 4, *overrides)["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize("lag", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_delays_and_queue_depth_change_nothing(pool: Pool, reference: EndToEnd, depth: int, lag: int) -> None:
    overrides = (*MLP, f"engine.lag={lag}")
    delayed = summary_of(pool, 4, *overrides, f"engine.depth={depth}", delays=0.02, seed=depth)
    assert delayed["fingerprint"] == reference(*overrides)


def test_more_room_for_targets_changes_nothing(pool: Pool, reference: EndToEnd) -> None:
    assert summary_of(pool, 4, *MLP, "engine.target_depth=5")["fingerprint"] == reference(*MLP)


def test_evaluation_changes_nothing(reference: EndToEnd) -> None:
    assert len({reference(*MLP, f"train.evaluate_every={every}") for every in (0, 1, 5)}) == 1


def test_reports_change_nothing(reference: EndToEnd) -> None:
    assert reference(*MLP, "train.log_every=1") == reference(*MLP, "train.log_every=100")


@pytest.mark.parametrize("other", ["seed=2", "engine.lag=1", "engine.lag=3", "engine.lag=exact", "train.steps=11"])
def test_options_of_the_result_change_it(reference: EndToEnd, other: str) -> None:
    assert reference(*MLP, other) != reference(*MLP)


def test_a_run_is_repeatable_and_its_figures_too(pool: Pool) -> None:
    first, second = (summary_of(pool, 2, *MLP) for _ in range(2))
    for key in ("fingerprint", "test_accuracy", "block_accuracy"):
        assert first[key] == second[key]


def test_one_block_is_a_network_with_a_local_rule_at_its_top(pool: Pool) -> None:
    assert summary_of(pool, 1, "blocks=1", "train.steps=60")["test_accuracy"] > 0.85


@pytest.mark.parametrize(("blocks", "ranks"), [(2, 2), (3, 2), (5, 2), (5, 3), (5, 4)])
def test_uneven_runs_of_blocks(pool: Pool, reference: EndToEnd, blocks: int, ranks: int) -> None:
    overrides = (*MLP, f"blocks={blocks}")
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)


def test_the_summary_has_the_keys_that_other_programs_read(pool: Pool) -> None:
    summary = summary_of(pool, 3, "train.steps=44")
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
