"""FLOPs, against counts by hand."""

import pytest
import torch
from torch import nn

from counterflow.algorithms import LocalAlgorithm
from counterflow.cli.hydra_app import load_config
from counterflow.engine.cost import SAMPLES, backprop, local
from counterflow.engine.factory import build_engine
from counterflow.metrics.provenance import digest
from counterflow.trainer.job_builder import load_job
from tests.helpers.processes import Pool
from tests.helpers.runs import SMALL, summary_of

MLP = ("model.hidden=1", "model.width=12", "model.norm=none", "blocks=2")
LAYERS = (64 * 12, 12 * 10)
"""Weights of the two layers of this network on digits."""


def test_backprop_of_a_layer_is_three_products_and_two_at_the_bottom() -> None:
    layer, example = nn.Linear(5, 7), torch.randn(SAMPLES, 5)
    assert backprop(layer, example, bottom=False).forward == 2 * 5 * 7
    assert backprop(layer, example, bottom=False).backprop == 3 * 2 * 5 * 7
    assert backprop(layer, example, bottom=True).backprop == 2 * 2 * 5 * 7
    assert layer.weight.grad is None


def test_a_reference_costs_what_backprop_costs(pool: Pool) -> None:
    for schedule in ("1f1b", "naive", "pipedream"):
        flops = summary_of(pool, 2, *MLP, "algorithm=bp", f"schedule={schedule}")["flops"]
        assert flops == {"network": 2 * sum(LAYERS), "training": 4 * LAYERS[0] + 6 * LAYERS[1], "extra": 0}


def test_bll_by_hand(pool: Pool) -> None:
    """No gradient leaves a block, and a book of 10 codes of 12 numbers is used in the posterior of the lower one.

    The top has one-hot codes: neither its posterior nor ``g_2``, whose weights are the book, multiplies anything.
    """
    flops = summary_of(pool, 2, *MLP, "algorithm.feedback.kind=linear")["flops"]
    saved = 2 * LAYERS[1]  # the gradient that would go down
    product = 2 * 12 * 10
    posterior = 2 * product  # q's logits, and the expected code
    below = 2 * product  # u_1 against the book of g_2, and the book's gradient
    assert flops["extra"] == posterior + below - saved


def test_an_update_counts_where_it_multiplies_matrices_and_leaves_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon's iterations do, once a batch; AdamW's update would only take memory."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("the state of AdamW was made"))
    network = ("model=cnn", "model.channels=[4,6]", "model.strides=[1,1]", "blocks=1", "model.norm=none")
    extra = []
    for optimizer in ("optimizer=adamw", "optimizer=muon"):
        job = load_job(load_config([*SMALL, "algorithm=predsim", "algorithm.beta=0", *network, optimizer]))
        assert isinstance(job.algorithm, LocalAlgorithm)
        rules = job.algorithm.rule_set(job.rule_context)
        flops = local(rules, 1, rules.rule(1), job)
        extra.append(flops.learning - flops.backprop)
    # Five iterations X <- a X + (b A + c A A) X with A = X X^T, for matrices of 4 x 9 and 6 x 36.
    iterations = sum(5 * 2 * (2 * rows * rows * columns + rows**3) for rows, columns in ((4, 9), (6, 36)))
    assert extra[0] == 0
    assert extra[1] == iterations / 32


@pytest.mark.parametrize("algorithm", ["bll", "al", "predsim"])
def test_counting_changes_no_bit(algorithm: str) -> None:
    job = load_job(load_config([*SMALL, f"algorithm={algorithm}", "model.dropout=0.2"]))
    state = torch.get_rng_state()
    build_engine(job)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(job.algorithm, LocalAlgorithm)
    rules = job.algorithm.rule_set(job.rule_context)
    for block in range(1, 5):
        rule = rules.rule(block)
        before = digest(rule)
        local(rules, block, rule, job)
        assert digest(rule) == before
