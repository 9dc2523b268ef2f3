"""Losses in chunks of rows are those of all rows at once, in values, gradients, operations and updates."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms import chunked_loss
from counterflow.algorithms.al import AL
from counterflow.algorithms.bll import BLL, BLLRule, Feedback, posterior
from counterflow.algorithms.chunked_loss import is_chunked, mean_of_rows
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.predsim import PredSim
from counterflow.algorithms.rule import LocalAlgorithm, LocalRule
from counterflow.config import FeedbackConfig
from counterflow.models.partition import flop_counter
from tests.helpers.systems import CASES, CLASSES, rule_context

ROWS, DIM, VOCABULARY = 23, 5, 11


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has chunks of so many rows of `VOCABULARY` scores; the last one may be smaller."""

    def set_rows(rows: int) -> None:
        monkeypatch.setattr(chunked_loss, "WHOLE", ROWS * VOCABULARY - 1)
        monkeypatch.setattr(chunked_loss, "_CHUNK", rows * VOCABULARY)

    return set_rows


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, w, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((ROWS, DIM), (VOCABULARY, DIM), (VOCABULARY,))
    )
    return x, torch.randint(VOCABULARY, (ROWS,), generator=generator), w, b


def means(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    logits = F.linear(x, w, b)
    return F.cross_entropy(logits, y, label_smoothing=0.1), (logits.argmax(-1) == y).double().mean()


@pytest.mark.parametrize("rows", [1, 4, 22, 23])
def test_values_and_gradients_are_those_of_one_call(few: Callable[[int], None], rows: int) -> None:
    x, y, w, b = example()
    expected = means(x, y, w, b)
    gradients = torch.autograd.grad(3 * expected[0], (x, w, b))
    few(rows)
    calls: list[int] = []

    def counted(*arguments: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(arguments[0]))
        return means(*arguments)

    found = mean_of_rows(counted, (x, y), (w, b), VOCABULARY)
    assert max(calls) <= rows
    assert sum(calls) == ROWS
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not found[1].requires_grad
    torch.testing.assert_close(torch.autograd.grad(3 * found[0], (x, w, b)), gradients, rtol=1e-10, atol=1e-13)


def test_only_what_is_wanted_has_a_gradient(few: Callable[[int], None]) -> None:
    few(4)
    x, y, w, b = example()
    loss, _ = mean_of_rows(means, (x.detach(), y), (w, b.detach()), VOCABULARY)
    torch.autograd.backward(loss)
    assert x.grad is None
    assert b.grad is None
    torch.testing.assert_close(w.grad, torch.autograd.grad(means(x, y, w, b)[0], w)[0])
    loss, _ = mean_of_rows(means, (x.detach(), y), (w.detach(), b.detach()), VOCABULARY)
    assert not loss.requires_grad


def test_few_scores_are_computed_at_once() -> None:
    """With the bits of the plain call."""
    assert not is_chunked(1 << 16, 256)
    assert is_chunked(1 << 16, 257)
    x, y, w, b = example()
    calls: list[int] = []

    def counted(*arguments: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(arguments[0]))
        return means(*arguments)

    assert torch.equal(mean_of_rows(counted, (x, y), (w, b), VOCABULARY)[0], means(x, y, w, b)[0])
    assert calls == [ROWS]


def test_chunks_take_no_more_operations(few: Callable[[int], None]) -> None:
    counts = []
    for rows in (None, 4):
        if rows:
            few(rows)
        x, y, w, b = example()
        with flop_counter() as counter:
            torch.autograd.backward(mean_of_rows(means, (x, y), (w, b), VOCABULARY)[0])
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * ROWS * DIM * VOCABULARY


RULES: dict[str, LocalAlgorithm] = {
    "bll": BLL(),
    "bll, smoothed, linear": BLL(smoothing=0.1, feedback=FeedbackConfig(kind="linear")),
    "predsim": PredSim(beta=0.0),
    "predsim, smoothed": PredSim(beta=0.3, smoothing=0.1),
    "al": AL(dim=6),
}


def updated(algorithm: LocalAlgorithm, name: str, block: int) -> tuple[LocalRule, dict[str, float]]:
    """A block pair after two updates, and its last metrics: in float64, but for AL, whose labels become float32."""
    rules = algorithm.rule_set(rule_context(name))
    dtype = torch.float32 if algorithm.name == "al" else torch.float64
    rule = rules.rule(block).to(dtype)
    case = CASES[name]
    generator = torch.Generator().manual_seed(block)
    y = torch.randint(CLASSES, (7, *case.task.label_shape), generator=generator)
    metrics: dict[str, float] = {}
    for n in range(2):
        if block == 1:
            message = [torch.randn(len(y), *case.task.input_shape, dtype=dtype, generator=generator), y]
        else:
            shapes = [shape for shape, _ in rules.activation(block - 1, len(y))]
            message = [torch.randn(*shape, dtype=dtype, generator=generator) for shape in shapes]
        book = [
            torch.randn(*shape, dtype=dtype, generator=generator)
            for shape, kind in rules.target(block, n, len(y))
            if kind.is_floating_point and block < len(case.dims)
        ]
        target = rule.receive_target(n, (*book, y))
        rule.forward_message(tuple(message))
        metrics = {key: float(value) for key, value in rule.update(BatchPart(n), tuple(message), target).items()}
    return rule, metrics


@pytest.mark.parametrize("name", ["sequences", "vectors"])
@pytest.mark.parametrize("rule", RULES)
def test_rules_learn_the_same(rule: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bottom, inside and at the top, where the output layer is split off."""
    for block in range(1, len(CASES[name].dims) + 1):
        expected, values = updated(copy.deepcopy(RULES[rule]), name, block)
        monkeypatch.setattr(chunked_loss, "WHOLE", CLASSES * CLASSES)
        monkeypatch.setattr(chunked_loss, "_CHUNK", 3 * CLASSES)
        found, chunked_values = updated(copy.deepcopy(RULES[rule]), name, block)
        monkeypatch.undo()
        assert chunked_values == pytest.approx(values, rel=1e-6)
        limits = {"rtol": 1e-5, "atol": 1e-6} if rule == "al" else {"rtol": 1e-6, "atol": 1e-9}
        for key, value in expected.state_dict().items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(found.state_dict()[key], value, **limits)


@pytest.mark.parametrize("rule", ["bll", "predsim", "predsim, smoothed"])
def test_the_top_ends_at_its_features_and_learns_the_same(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for whole in (chunked_loss.WHOLE, 1):
        monkeypatch.setattr(chunked_loss, "WHOLE", whole)
        monkeypatch.setattr(chunked_loss, "_CHUNK", 3 * CLASSES)
        generator = torch.Generator().manual_seed(1)
        context = rule_context("sequences")
        torch.manual_seed(1)
        top = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, CLASSES, bias=False)))
        context = replace(context, blocks=[*context.blocks[:-1], top])
        pair = RULES[rule].rule_set(context).rule(len(context.blocks)).double()
        y = torch.randint(CLASSES, (5, 7), generator=generator)
        x = tuple(torch.randn(5, 7, 4, dtype=torch.float64, generator=generator) for _ in range(2))
        target = pair.receive_target(0, (y,))
        up = pair.forward_message(x)[0]
        assert up.shape[-1] == (CLASSES if whole > 1 else 6)
        metrics = pair.update(BatchPart(0), x, target)
        assert pair.predict(x, target)[0][0].shape == (5, 7, CLASSES)
        learnt = {name: value for name, value in pair.state_dict().items() if name.startswith(("block", "feedback"))}
        results.append((metrics, learnt, [name for name, _ in pair.named_parameters()]))
    (metrics, learnt, names), (chunked_metrics, chunked_learnt, chunked_names) = results
    torch.testing.assert_close(dict(chunked_metrics), dict(metrics), rtol=1e-6, atol=0)
    torch.testing.assert_close(chunked_learnt, learnt, rtol=1e-6, atol=1e-9)
    assert chunked_names == names, "each is there once"


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("classes", [10, 256])
def test_one_hot_codes_have_the_bits_of_products_with_the_identity(kind: str, classes: int) -> None:
    torch.manual_seed(0)
    feedback = Feedback(classes, 32, FeedbackConfig(kind=kind))
    for parameter in feedback.parameters():
        nn.init.normal_(parameter, std=0.1)
    weights, results = torch.randn(classes, 32), []
    for codes in (torch.eye(classes), None):
        feedback.zero_grad()
        book = feedback(codes)
        torch.autograd.backward((book * weights).sum())
        results.append([book, *(parameter.grad for parameter in feedback.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    u, y = torch.randn(9, classes), torch.randint(classes, (9,))
    for smoothing in (0.0, 0.1):
        assert torch.equal(posterior(u, torch.eye(classes), y, smoothing), posterior(u, None, y, smoothing))


def test_a_large_vocabulary_has_no_book_of_one_hot_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "WHOLE", CLASSES * CLASSES - 1)
    top = BLL().rule_set(rule_context("sequences")).rule(3)
    assert isinstance(top, BLLRule)
    assert top.codes is None
