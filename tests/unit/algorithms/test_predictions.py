"""Predictions of every rule: labels and scores, of the announced shapes."""

import pytest
import torch
from torch import Tensor

from counterflow.algorithms.al import AL
from counterflow.algorithms.predsim import PredSim
from counterflow.algorithms.rule import Prediction, RuleSet
from counterflow.algorithms.stale_gradient import StaleGradient
from tests.helpers.systems import CASES, CLASSES, head_config, rule_context, specs, system, targets

BATCH = 4


def check(prediction: object, shape: tuple[int, ...]) -> None:
    assert isinstance(prediction, Prediction)
    labels, scores = prediction
    assert specs((labels, scores)) == ((shape, torch.int64), ((*shape, CLASSES), torch.float32))
    assert torch.equal(labels, scores.argmax(-1))
    assert not torch.equal(scores[..., 0], scores[..., 1]), "scores that tell nothing"


def rules(algorithm: str, name: str) -> RuleSet:
    match algorithm:
        case "bll":
            return system(name)
        case "al":
            return AL(dim=9, head=head_config(name)).rule_set(rule_context(name))
        case "naive":
            return StaleGradient(rule_context(name), lambda n, block: None, 0.0)
        case _:
            return PredSim(beta=0.5 if algorithm == "predsim" else 1.0, head=head_config(name)).rule_set(
                rule_context(name)
            )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("algorithm", ["bll", "predsim", "sim alone", "naive"])
@torch.no_grad()
def test_labels_are_the_greatest_scores(algorithm: str, name: str) -> None:
    case = CASES[name]
    rule_set, top = rules(algorithm, name), len(case.dims)
    message: tuple[Tensor, ...] = (torch.randn(BATCH, *case.task.input_shape),)
    for k in range(1, top + 1):
        rule = rule_set.rule(k).eval()
        target: tuple[Tensor, ...] = ()
        if algorithm == "bll":
            target = rule.receive_target(0, tuple(t.float() if t.is_floating_point() else t for t in targets(name, k)))
        message, prediction = rule.predict(message, target)
        if k < top and algorithm in ("sim alone", "naive"):
            assert prediction is None
        else:
            check(prediction, (BATCH, *case.task.label_shape))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_at_the_bottom_of_associated_learning_there_is_a_row_for_every_block(name: str) -> None:
    case = CASES[name]
    rule_set, top = rules("al", name), len(case.dims)
    blocks = [rule_set.rule(k).eval() for k in range(1, top + 1)]
    message: tuple[Tensor, ...] = (torch.randn(BATCH, *case.task.input_shape),)
    owns = []
    for rule in blocks:
        message, own = rule.predict(message, ())
        assert isinstance(own, Tensor)
        owns.append(own)
    down: tuple[Tensor, ...] = ()
    for rule, own in zip(reversed(blocks), reversed(owns), strict=True):
        assert not isinstance(down, Prediction), "only the bottom predicts"
        down = rule.decode_prediction(own, down)
    check(down, (top, BATCH, *case.task.label_shape))
