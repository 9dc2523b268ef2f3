"""Associated learning and Pred-Sim: no timing and no placement changes a single bit of the result (section 2)."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

EndToEnd = Callable[..., str]

# Dropout draws random numbers and batch norm keeps buffers: both must not depend on the placement either.
MLP = ("model.width=32", "model.dropout=0.2", "model.norm=batch")
CNN = ("model=cnn", "model.channels=[4,4,6,6]", "model.strides=[1,2,1,1]", "model.dropout=0.1", "data.augment=true")
RULES = {
    "al": ("algorithm=al", "algorithm.dim=20"),
    "predsim": ("algorithm=predsim", "algorithm.beta=0.99"),
    "sim alone": ("algorithm=predsim", "algorithm.beta=1.0"),
}


@pytest.fixture(scope="module")
def reference(pool: Pool) -> EndToEnd:
    """The fingerprint of one process."""
    return cache(lambda *overrides: summary_of(pool, 1, *overrides)["fingerprint"])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("rule", RULES)
def test_processes_change_nothing(pool: Pool, reference: EndToEnd, rule: str, ranks: int) -> None:
    overrides = (*RULES[rule], *MLP)
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize("rule", ["al", "predsim"])
def test_processes_change_nothing_in_feature_maps(pool: Pool, reference: EndToEnd, rule: str) -> None:
    overrides = (*RULES[rule], *CNN)
    assert summary_of(pool, 4, *overrides)["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("rule", RULES)
def test_delays_and_queue_depth_change_nothing(pool: Pool, reference: EndToEnd, rule: str, depth: int) -> None:
    overrides = (*RULES[rule], *MLP)
    delayed = summary_of(pool, 4, *overrides, f"engine.depth={depth}", delays=0.02, seed=depth)
    assert delayed["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize(("blocks", "ranks"), [(1, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("rule", ["al", "predsim"])
def test_uneven_runs_of_blocks(pool: Pool, reference: EndToEnd, rule: str, blocks: int, ranks: int) -> None:
    overrides = (*RULES[rule], *MLP, f"blocks={blocks}")
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)


@pytest.mark.parametrize("rule", RULES)
def test_neither_evaluation_nor_lag_is_part_of_the_result(reference: EndToEnd, rule: str) -> None:
    """Labels do not age, and associated learning sends nothing down that could."""
    overrides = (*RULES[rule], *MLP)
    others = ("train.evaluate_every=0", "train.evaluate_every=1", "engine.lag=1", "engine.lag=3", "engine.lag=exact")
    assert {reference(*overrides, other) for other in others} == {reference(*overrides)}


@pytest.mark.parametrize("rule", RULES)
def test_options_of_the_result_change_it(reference: EndToEnd, rule: str) -> None:
    overrides = (*RULES[rule], *MLP)
    own = "algorithm.dim=21" if rule == "al" else "algorithm.beta=0.5"
    others = ("seed=2", "seed=3", "train.steps=11", own)
    assert len({reference(*overrides, *other) for other in [(), *((o,) for o in others)]}) == 1 + len(others)


@pytest.mark.parametrize("rule", RULES)
def test_figures_are_those_of_one_process_too(pool: Pool, rule: str) -> None:
    one, several = (summary_of(pool, ranks, *RULES[rule], *MLP) for ranks in (1, 4))
    for key in ("test_accuracy", "block_accuracy", "effective_parameters", "affiliated_parameters"):
        assert one[key] == several[key]


OPTIONS = {
    "muon": ("optimizer=muon", "optimizer.bias_lr_scale=4", "optimizer.bias_decay=false", "optimizer.weight_decay=0.1"),
    "average": ("optimizer.average=0.9",),
    "smoothing": ("algorithm.smoothing=0.2",),
}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_the_optimizer_do_not_see_the_placement(
    pool: Pool, reference: EndToEnd, options: str, ranks: int
) -> None:
    overrides = (*OPTIONS[options], *CNN, "engine.channels_last=true")
    assert summary_of(pool, ranks, *overrides)["fingerprint"] == reference(*overrides)
