"""``lag: exact`` on one process against Figure 2 (left) of the paper, written here from the equations alone."""

import copy
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms.bll import BLL, BLLRule, BLLRules
from counterflow.engine.job import Job
from counterflow.engine.local import run
from counterflow.trainer.job_builder import load_job
from counterflow.transport import connect
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL, unrecorded

MODELS = {
    "mlp": (),
    "cnn with batch norm": (
        "model=cnn",
        "model.channels=[4,4,6,6]",
        "model.strides=[1,2,1,1]",
        "algorithm.head.convolutions=0",
        "algorithm.head.dim=40",
    ),
}
STEPS = 12
WIDEST_LATENT = 40


class Losses:
    """A callback that keeps the loss of every block."""

    def __init__(self) -> None:
        self.losses: dict[tuple[int, int], Tensor] = {}

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        self.losses[block, n] = metrics["loss"].clone()

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        pass


def prepared(*overrides: str) -> tuple[Job, BLLRules]:
    job = load_job(configured(*SMALL, "engine.lag=exact", *overrides))
    assert isinstance(job.algorithm, BLL)
    rules = job.algorithm.rule_set(job.rule_context)
    assert isinstance(rules, BLLRules)
    return job, rules


def latent(a: Tensor) -> Tensor:
    """``T_k``: average pooling of maps to at most `WIDEST_LATENT` dimensions, then layer norm."""
    if a.ndim == 4:
        side = max(s for s in range(1, a.shape[-1] + 1) if s == 1 or a.shape[1] * s * s <= WIDEST_LATENT)
        a = F.adaptive_avg_pool2d(a, side).flatten(1)
    return F.layer_norm(a, a.shape[1:])


def book(g: list[Tensor], above: Tensor) -> Tensor:
    """``b_{k-1} = g_k(b_k)``: a fixed skip plus an MLP, centred over the classes, of root mean square norm 1."""
    skip, w1, bias, w2 = g
    b = above @ skip.T + F.linear(F.relu(F.linear(above, w1, bias)), w2)
    b = b - b.mean(0)
    return b * (1.0 / b.square().sum(1).mean().sqrt())


def figure_2(job: Job, blocks: list[nn.Module], feedback: list[list[Tensor]]) -> list[list[Tensor]]:
    """Train ``blocks`` f_1..f_N and ``feedback`` g_2..g_N in place; the losses of every batch, bottom to top."""
    N, classes = len(blocks), job.task.classes
    theta = [torch.optim.AdamW(f.parameters(), weight_decay=0.0, fused=True) for f in blocks]
    phi = [torch.optim.AdamW(g[1:], weight_decay=0.0, fused=True) for g in feedback]
    history = []
    for n in range(STEPS):
        x, y = job.batches.inputs(n), job.batches.labels(n)
        lr = 1e-3 * 0.5 * (1.0 + math.cos(math.pi * (n / STEPS)))
        b = [torch.eye(classes)]
        with torch.no_grad():
            for g in reversed(feedback):
                b.insert(0, book(g, b[0]))
        a, u_below, losses = x, None, []
        for k in range(N):
            a = blocks[k](a.detach())
            u = a if k == N - 1 else latent(a)
            with torch.no_grad():
                r = u + b[k][y] - (u @ b[k].T).softmax(1) @ b[k]
            loss = 0.5 * (r - u).square().sum(1).mean()
            loss.backward()
            theta[k].param_groups[0]["lr"] = lr
            theta[k].step()
            theta[k].zero_grad()
            if k > 0:
                assert u_below is not None
                F.cross_entropy(u_below @ book(feedback[k - 1], b[k]).T, y).backward()
                phi[k - 1].param_groups[0]["lr"] = lr * 0.1
                phi[k - 1].step()
                phi[k - 1].zero_grad()
            u_below = u.detach()
            losses.append(loss.detach())
        history.append(losses)
    return history


def weights(feedback: nn.Module) -> list[Tensor]:
    state = copy.deepcopy(feedback)
    residual = state.get_submodule("residual")
    assert isinstance(residual, nn.Sequential)
    first, last = residual[0], residual[2]
    return [state.get_buffer("skip"), first.weight, first.bias, last.weight]


@cache
def trained(model: str) -> tuple[Job, list[nn.Module], dict[int, nn.Module], Losses]:
    """The rules of the blocks before and after a run on one process, which several tests look at."""
    job, rule_set = prepared(*MODELS[model])
    before = [copy.deepcopy(rule_set.rule(k)) for k in range(1, 5)]
    after: dict[int, nn.Module] = {}
    make, losses = rule_set.rule, Losses()

    def keep(block: int) -> BLLRule:
        rule = make(block)
        assert isinstance(rule, BLLRule)
        after[block] = rule
        return rule

    rule_set.rule = keep  # type: ignore[method-assign]
    run(job, lambda _: rule_set, unrecorded(connect(None, 0, 1, timeout=30), losses))
    return job, before, after, losses


@pytest.mark.parametrize("model", MODELS)
def test_equals_the_loop_of_the_paper_to_the_bit(model: str) -> None:
    job, rules, after, callback = trained(model)
    blocks = [copy.deepcopy(rule.get_submodule("block")) for rule in rules]
    feedback = [weights(rule.get_submodule("feedback")) for rule in rules[1:]]
    expected = figure_2(job, blocks, feedback)

    assert [[callback.losses[k, n] for k in range(1, 5)] for n in range(STEPS)] == expected
    for k, block in enumerate(blocks, 1):
        ours = after[k].get_submodule("block").state_dict()
        assert ours.keys() == block.state_dict().keys()
        for name, value in block.state_dict().items():
            assert torch.equal(ours[name], value), f"{name} of block {k}"
    for k, g in enumerate(feedback, 2):
        for ours, value in zip(weights(after[k].get_submodule("feedback")), g, strict=True):
            assert torch.equal(ours, value), f"feedback of block {k}"


def test_learning_moves_every_parameter() -> None:
    _, before, after, _ = trained("mlp")
    for k, rule in after.items():
        old = dict(before[k - 1].named_parameters())
        assert all(not torch.equal(value, old[name]) for name, value in rule.named_parameters())
