"""A batch in two parts gives the same step as the whole batch, where no batch norm sees the parts."""

import copy

import pytest
import torch
from torch import Tensor

from counterflow.algorithms.al import AL
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.predsim import PredSim
from counterflow.algorithms.rule import LocalRule, RuleSet
from counterflow.config import SGD
from tests.helpers.systems import CASES, head_config, inputs, labels, rule_context, system, targets

OPTIMIZER = SGD(lr=0.3, momentum=0.8, schedule="linear")
NAMES = ("vectors", "sequences")
"""The cases without batch norm."""


def rules(algorithm: str, name: str) -> RuleSet:
    match algorithm:
        case "bll":
            return system(name, optimizer=OPTIMIZER)
        case "al":
            return AL(dim=9, head=head_config(name)).rule_set(rule_context(name, OPTIMIZER))
        case _:
            return PredSim(beta=0.0, head=head_config(name)).rule_set(rule_context(name, OPTIMIZER))


def batch(algorithm: str, name: str, block: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A message from below and a message from above."""
    a, *more = single(inputs(name, block))
    match algorithm:
        case "bll":
            return (a, *more), single(targets(name, block))
        case "al":
            y = labels(name)
            return (a, y if block == 1 else torch.randn(*y.shape, 9)), ()
        case _:
            return (a,), (labels(name),)


def single(message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``message`` in single precision, with its labels as they are."""
    return tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in message)


def half(message: tuple[Tensor, ...], index: int) -> tuple[Tensor, ...]:
    return tuple(tensor.chunk(2)[index] for tensor in message)


def learn(rule: LocalRule, part: BatchPart, message: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    rule.forward_message(message)
    return rule.update(part, message, target)["loss"]


@pytest.mark.parametrize("block", ["bottom", "middle", "top"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("algorithm", ["bll", "al", "predsim"])
def test_two_parts_give_the_step_of_the_whole_batch(algorithm: str, name: str, block: str) -> None:
    k = {"bottom": 1, "middle": 2, "top": len(CASES[name].dims)}[block]
    whole, parts = (rules(algorithm, name).rule(k) for _ in range(2))
    start = copy.deepcopy(dict(whole.named_parameters()))
    for n in range(2):
        message, above = batch(algorithm, name, k)
        target = whole.receive_target(n, above) if algorithm != "al" else ()
        if algorithm != "al":
            parts.receive_target(n, above)
        *books, y = target or (torch.empty(0),)
        before = copy.deepcopy(dict(parts.named_parameters()))
        loss = learn(whole, BatchPart(n), message, target)
        losses = []
        for index in range(2):
            assert all(torch.equal(value, before[key]) for key, value in parts.named_parameters())
            own = (*books, *half((y,), index)) if target else ()
            losses.append(learn(parts, BatchPart(n, index, 2), half(message, index), own))
        torch.testing.assert_close(torch.stack(losses).mean(), loss)
        assert all(parameter.grad is None for parameter in parts.parameters())
        torch.testing.assert_close(dict(parts.named_parameters()), dict(whole.named_parameters()), rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, start[key]) for key, value in whole.named_parameters())


def test_the_last_part_ends_with_the_update() -> None:
    assert [BatchPart(3, index, 3).is_last for index in range(3)] == [False, False, True]
    assert BatchPart(3).is_last
