"""Associated learning in whole runs."""

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of
from tests.unit.algorithms.test_al import MODELS, N, accuracy, components, prepared, trained


def test_the_reported_accuracy_is_the_one_through_the_top_bridge(pool: Pool) -> None:
    options = (*MODELS["mlp"], "train.evaluate_every=0")
    job, rule_set = prepared(*options)
    rules, _ = trained(job, rule_set)
    c = components(rules)
    for ranks in (1, 3):
        summary = summary_of(pool, ranks, "algorithm=al", *options)
        assert summary["test_accuracy"] == accuracy(job, c, N, "test")
        assert summary["block_accuracy"] == [accuracy(job, c, i, "test") for i in range(1, N + 1)]


def test_it_learns_digits(pool: Pool) -> None:
    """All components after three epochs; what they reach in the end is for the launch test."""
    assert min(summary_of(pool, 2, "algorithm=al", "train.steps=132", "train.evaluate_every=0")["block_accuracy"]) > 0.8


def test_effective_and_affiliated_parameters_by_hand(pool: Pool) -> None:
    # Digits are 8x8, in 10 classes. Five layers in four blocks: 64-12, 12-12, 12-12, 12-12-10, a layer norm after each
    # hidden one. The target's side is 7 wide. The output layer, 12-10, has no part.
    f = (64 * 12 + 12 + 24) + 3 * (12 * 12 + 12 + 24)
    h = (7 * 10 + 10) + 3 * (7 * 7 + 7)
    top_bridge = 12 * 7 + 7
    g = (10 * 7 + 7) + 3 * (7 * 7 + 7)
    bridges = 3 * (12 * 7 + 7)
    for ranks in (1, 2):
        summary = summary_of(
            pool, ranks, "algorithm=al", "model.width=12", "model.cut=[1,1,1,2]", "algorithm.dim=7", "train.steps=2"
        )
        assert summary["effective_parameters"] == f + h + top_bridge
        assert summary["affiliated_parameters"] == g + bridges
