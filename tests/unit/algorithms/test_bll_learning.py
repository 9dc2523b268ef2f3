"""One block pair of BLL learns as the definitions of section 3.1 and torch's own optimizers say."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from counterflow.algorithms.bll import BLLRule
from counterflow.algorithms.optimizer import BatchPart
from counterflow.config import SGD, AdamW, FeedbackConfig, OptimizerConfig
from tests.helpers.systems import (
    BATCHES,
    CASES,
    CLASSES,
    FAMILIES,
    distribution,
    inputs,
    log_q,
    rho,
    system,
    targets,
)

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "sgd": SGD(lr=0.3, momentum=0.8, weight_decay=0.02, schedule="linear"),
    "adamw": AdamW(lr=0.01, betas=[0.8, 0.95], weight_decay=0.1, schedule="cosine"),
}
LR_SCALE = 0.25


def torch_optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.3, momentum=0.8, weight_decay=0.02)
    return torch.optim.AdamW(parameters, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)


def learning_rate(name: str, n: int) -> float:
    if name == "sgd":
        return 0.3 * (1 - n / BATCHES)
    return 0.01 * (1 + math.cos(math.pi * n / BATCHES)) / 2


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


def bll_rule(name: str, block: int, **options: object) -> BLLRule:
    rule = system(name, **options).rule(block).double()  # type: ignore[arg-type]
    assert isinstance(rule, BLLRule)
    return rule


def assert_same_state(ours: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(ours.state_dict(), expected.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", ["bottom", "middle", "top"])
@pytest.mark.parametrize("name", CASES)
def test_learning_is_descent_of_both_local_losses(name: str, block: str, family: str, optimizer: str) -> None:
    top = len(CASES[name].dims)
    k = {"bottom": 1, "middle": 2, "top": top}[block]
    rule = bll_rule(
        name,
        k,
        family=family,
        optimizer=OPTIMIZERS[optimizer],
        feedback=FeedbackConfig(hidden=9, lr_scale=LR_SCALE),
    )
    f, T, g = copy.deepcopy(rule.block), copy.deepcopy(rule.head), copy.deepcopy(rule.feedback)
    theta = torch_optimizer(optimizer, [*f.parameters(), *T.parameters()])
    phi = torch_optimizer(optimizer, list(g.parameters())) if g is not None else None

    for n in (0, 1, 5):
        message, down = inputs(name, k), targets(name, k)
        target = rule.receive_target(n, down)
        rule.receive_target(n + 1, targets(name, k))  # messages come some batches early
        rule.forward_message(message)
        metrics = rule.update(BatchPart(n), message, target)

        b = torch.eye(CLASSES, dtype=torch.float64) if k == top else down[0]
        y = down[-1]
        u = T(f(message[0]))
        r = rho(u, b, y)
        member = "gaussian" if k == top else family
        kl = kl_divergence(distribution(member, r), distribution(member, u)).mean()
        expected = {
            "loss": kl,
            "nll": -log_q(u, b, y).mean(),
            "accuracy": (torch.einsum("...d,cd->...c", u, b).argmax(-1) == y).double().mean(),
        }
        kl.backward()
        step(theta, learning_rate(optimizer, n))
        if phi is not None:
            expected["feedback_loss"] = -log_q(message[1], g(b), y).mean()
            expected["feedback_loss"].backward()
            step(phi, learning_rate(optimizer, n) * LR_SCALE)

        assert metrics.keys() == expected.keys()
        for key, value in expected.items():
            assert metrics[key].item() == pytest.approx(value.item(), rel=1e-6), key
        assert_same_state(rule.block, f)
        assert_same_state(rule.head, T)
        if g is not None:
            assert rule.feedback is not None
            assert_same_state(rule.feedback, g)
    assert all(parameter.grad is None for parameter in rule.parameters())


def test_learning_moves_theta_and_phi() -> None:
    """Otherwise the test above could compare what stands still."""
    rule = bll_rule("maps, convolutional heads", 2)
    before = copy.deepcopy(dict(rule.named_parameters()))
    for n in range(2):  # what is in front of a layer of zeros moves from the second step on
        message = inputs("maps, convolutional heads", 2)
        target = rule.receive_target(n, targets("maps, convolutional heads", 2))
        rule.forward_message(message)
        rule.update(BatchPart(n), message, target)
    assert not [name for name, value in rule.named_parameters() if torch.equal(value, before[name])]


@pytest.mark.parametrize("name", CASES)
def test_top_descends_the_cross_entropy(name: str) -> None:
    top = len(CASES[name].dims)
    rule = bll_rule(name, top, optimizer=SGD(lr=0.5, momentum=0.0, schedule="constant"))
    f = copy.deepcopy(rule.block)
    optimizer = torch.optim.SGD(f.parameters(), lr=0.5)
    message, (y,) = inputs(name, top), targets(name, top)
    target = rule.receive_target(0, (y,))
    assert len(target) == 1, "its codes are one-hot"
    assert torch.equal(target[0], y)
    a, u = rule.forward_message(message)
    assert torch.equal(a, u)
    rule.update(BatchPart(0), message, target)

    nn.functional.cross_entropy(f(message[0]).flatten(0, -2), y.flatten()).backward()
    optimizer.step()
    assert_same_state(rule.block, f)


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_crosses_to_the_block_below(name: str) -> None:
    bll = system(name)
    below, above = bll.rule(1).double(), bll.rule(2).double()
    message = below.forward_message(inputs(name, 1))
    assert not any(tensor.requires_grad for tensor in message)
    above.forward_message(message)
    above.update(BatchPart(0), message, above.receive_target(0, targets(name, 2)))
    assert all(parameter.grad is None for parameter in below.parameters())


def test_the_activation_that_travels_is_the_one_before_the_update() -> None:
    rule = bll_rule("vectors", 1)
    f = copy.deepcopy(rule.block)
    message = inputs("vectors", 1)
    expected = f(message[0])
    a, u = rule.forward_message(message)
    rule.update(BatchPart(0), message, rule.receive_target(0, targets("vectors", 1)))
    torch.testing.assert_close(a, expected, rtol=0, atol=0)
    centred = expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(u, centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt())


def emitted(rule: BLLRule, n: int, target: tuple[Tensor, ...]) -> Tensor:
    """The book that goes down for batch ``n``."""
    book, labels = rule.make_target(n, target)
    assert labels is target[-1]
    assert not book.requires_grad
    return book


def test_the_target_below_is_made_with_the_present_phi() -> None:
    rule = bll_rule("vectors", 2)
    g = copy.deepcopy(rule.feedback)
    assert g is not None
    message, target = inputs("vectors", 2), rule.receive_target(0, targets("vectors", 2))
    rule.forward_message(message)
    first = emitted(rule, 0, target)
    torch.testing.assert_close(first, g(target[0]), rtol=0, atol=0)
    rule.update(BatchPart(0), message, target)
    torch.testing.assert_close(first, g(target[0]), rtol=0, atol=0)  # what was sent stays as it was
    assert not torch.equal(emitted(rule, 1, target), first)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_feedback_stands_still_at_lr_scale_0(kind: str) -> None:
    rule = bll_rule("vectors", 2, feedback=FeedbackConfig(kind=kind, lr_scale=0.0))
    state = copy.deepcopy(rule.feedback)
    theta = copy.deepcopy(rule.block)
    assert state is not None
    message, target = inputs("vectors", 2), rule.receive_target(0, targets("vectors", 2))
    rule.forward_message(message)
    rule.update(BatchPart(0), message, target)
    torch.testing.assert_close(dict(rule.feedback.state_dict()), dict(state.state_dict()), rtol=0, atol=0)
    assert not torch.equal(rule.block[0].weight, theta[0].weight)


def test_an_mlp_keeps_its_skip_and_a_linear_feedback_learns_it() -> None:
    for kind, moves in (("mlp", False), ("linear", True)):
        rule = bll_rule("vectors", 2, feedback=FeedbackConfig(kind=kind))
        assert rule.feedback is not None
        skip = rule.feedback.skip.detach().clone()
        message, target = inputs("vectors", 2), rule.receive_target(0, targets("vectors", 2))
        rule.forward_message(message)
        rule.update(BatchPart(0), message, target)
        assert (not torch.equal(rule.feedback.skip, skip)) == moves
