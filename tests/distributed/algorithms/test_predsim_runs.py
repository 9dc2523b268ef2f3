"""Pred-Sim in whole runs."""

from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of


def test_parameters_and_accuracies_of_a_run_by_beta(pool: Pool) -> None:
    """Digits, 64-12-12-12-12-10 in four blocks; a linear layer of 10 and a branch of 12x12 in each of three."""
    f = (64 * 12 + 12 + 24) + 3 * (12 * 12 + 12 + 24) + (12 * 10 + 10)
    for beta, affiliated in ((0.0, 3 * 130), (0.99, 3 * (130 + 144)), (1.0, 3 * 144)):
        options = ("algorithm=predsim", f"algorithm.beta={beta}", "model.width=12", "model.cut=[1,1,1,2]")
        summary = summary_of(pool, 2, *options, "train.steps=2")
        assert summary["effective_parameters"] == f
        assert summary["affiliated_parameters"] == affiliated
        *lower, top = summary["block_accuracy"]
        assert top == summary["test_accuracy"]
        assert all((accuracy is None) == (beta == 1.0) for accuracy in lower)


def test_it_learns_digits(pool: Pool) -> None:
    """Far above chance after three epochs; what it reaches in the end is for the launch test."""
    options = ("algorithm=predsim", "train.steps=132", "train.evaluate_every=0")
    assert summary_of(pool, 2, *options)["test_accuracy"] > 0.8
