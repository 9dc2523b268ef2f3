"""The contract of BLL's rules with an engine: messages, their shapes, parameters from the seed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from counterflow.algorithms import ALGORITHMS
from counterflow.algorithms.bll import BLL, BLLRule
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import Prediction, RuleContext, RuleSet, Task
from counterflow.config import SGD, FeedbackConfig, HeadConfig, LatentConfig
from tests.helpers.systems import CASES, CLASSES, Case, inputs, labels, specs, system, targets, travelling


def test_it_is_known_by_its_name() -> None:
    assert ALGORITHMS["bll"] is BLL


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_messages_are_what_was_announced(name: str, batch: int) -> None:
    """All blocks in float32, batch by batch, and every message on every edge."""
    bll = system(name, feedback=FeedbackConfig(refresh=2))
    case = CASES[name]
    top = len(case.dims)
    rules = [bll.rule(k) for k in range(1, top + 1)]
    for n in range(4):
        target: tuple[Tensor, ...] = (labels(name, batch),)
        kept = {}
        for k in range(top, 0, -1):
            if k < top:
                assert travelling(target) == bll.target(k, n, batch)
            kept[k] = rules[k - 1].receive_target(n, target)
            if k > 1:
                target = rules[k - 1].make_target(n, kept[k])
        message: tuple[Tensor, ...] = (torch.randn(batch, *case.task.input_shape),)
        for k in range(1, top + 1):
            up = rules[k - 1].forward_message(message)
            if k < top:
                assert specs(up) == bll.activation(k, batch)
            rules[k - 1].update(BatchPart(n), message, kept[k])
            message = up
    message = (torch.randn(batch, *case.task.input_shape),)
    for k in range(1, top + 1):
        message, prediction = rules[k - 1].predict(message, kept[k])
        if k < top:
            assert specs(message) == bll.test_activation(k, batch)
        assert isinstance(prediction, Prediction)
        assert specs((prediction.labels,)) == specs((labels(name, batch),))


@pytest.mark.parametrize("name", CASES)
def test_announced_shapes_by_hand(name: str) -> None:
    bll, case = system(name, feedback=FeedbackConfig(refresh=3)), CASES[name]
    for k in range(1, len(case.dims)):
        a = ((4, *case.shapes[k - 1]), torch.float32)
        u = ((4, *case.task.label_shape, case.dims[k - 1]), torch.float32)
        book = ((CLASSES, case.dims[k - 1]), torch.float32)
        y = ((4, *case.task.label_shape), torch.uint8)
        assert bll.activation(k, 4) == (a, u)
        assert bll.test_activation(k, 4) == (a,)
        assert [bll.target(k, n, 4) for n in range(5)] == [(book, y), (y,), (y,), (book, y), (y,)]


@pytest.mark.parametrize("refresh", [1, 2, 3])
def test_a_book_goes_down_every_so_many_batches(refresh: int) -> None:
    bll = system("vectors", feedback=FeedbackConfig(refresh=refresh))
    top, below = bll.rule(4), bll.rule(3)
    for n in range(7):
        target = top.receive_target(n, (labels("vectors"),))
        message = top.make_target(n, target)
        assert len(message) == (2 if n % refresh == 0 else 1)
        assert message[-1] is target[-1]
        assert below.make_target(n, below.receive_target(n, message))[-1] is target[-1]


def test_a_book_stands_until_the_next_one_and_old_targets_stay() -> None:
    rule = system("vectors").rule(2)
    books = {n: torch.randn(CLASSES, 4) for n in (0, 3)}
    expected = [books[0], books[0], books[0], books[3], books[3]]
    kept, labels_of = [], []
    for n in range(5):
        labels_of.append(labels("vectors"))
        message = (books[n].clone(), labels_of[n]) if n in books else (labels_of[n],)
        kept.append(rule.receive_target(n, message))
    for n in range(5):
        assert torch.equal(kept[n][0], expected[n])
        assert torch.equal(kept[n][1], labels_of[n])


def test_a_block_without_a_book_is_a_broken_engine() -> None:
    with pytest.raises(AssertionError, match="the first target message brings a code book"):
        system("vectors").rule(2).receive_target(1, (labels("vectors"),))


def test_the_last_book_is_part_of_the_state() -> None:
    """A checkpoint between two books must hold the one that stands."""
    rule = system("vectors").rule(2)
    book = torch.randn(CLASSES, 4)
    rule.receive_target(0, (book, labels("vectors")))
    assert torch.equal(rule.state_dict()["codes"], book)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 2, -1])
def test_predicting_is_the_likeliest_class_and_updates_nothing(name: str, block: int) -> None:
    top = len(CASES[name].dims)
    k = block % (top + 1)
    rule = system(name).rule(k).double()
    assert isinstance(rule, BLLRule)
    message, down = inputs(name, k, batch=32), targets(name, k)
    target = rule.receive_target(0, down)
    rule.eval()
    state = copy.deepcopy(rule.state_dict())
    f, T = copy.deepcopy(rule.block), copy.deepcopy(rule.head)

    (a,), prediction = rule.predict(message, target)

    torch.testing.assert_close(rule.state_dict(), state, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in rule.parameters())
    expected = f(message[0])
    assert torch.equal(a, expected)
    codes = torch.eye(CLASSES, dtype=torch.float64) if k == top else down[0]
    scores = [(T(expected) * code).sum(-1) for code in codes]
    assert torch.equal(prediction.labels, torch.stack(scores, -1).max(-1).indices)
    torch.testing.assert_close(prediction.scores, torch.stack(scores, -1))
    assert len(prediction.labels.unique()) > 1, "one class for all would not tell much"


def test_predicting_between_forward_and_update_changes_nothing() -> None:
    """Test batches follow a training batch in the same channels."""
    message, down = inputs("vectors", 2), targets("vectors", 2)
    states = []
    for disturbed in (False, True):
        rule = system("vectors").rule(2).double()
        target = rule.receive_target(0, down)
        rule.forward_message(message)
        if disturbed:
            rule.predict(inputs("vectors", 2, batch=3), target)
        rule.update(BatchPart(0), message, target)
        states.append(rule.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_metric_of_the_network_is_the_free_energy() -> None:
    figures = [{"loss": 0.5, "nll": 9.0}, {"loss": 0.25, "nll": 8.0}, {"loss": 1.0, "nll": 2.0}]
    assert system("sequences").summarize(figures) == {"free_energy": pytest.approx(2.0 + (0.5 + 0.25 + 1.0) / 3)}


# With widths that change and convolutions in the heads, so that every kind of random draw is made.
@pytest.mark.parametrize("name", ["vectors", "maps, convolutional heads"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_parameters_are_a_function_of_seed_and_block(name: str, kind: str) -> None:
    def states(order: list[int], seed: int) -> dict[int, dict[str, Tensor]]:
        bll = system(name, seed=seed, feedback=FeedbackConfig(kind=kind))
        return {k: dict(bll.rule(k).state_dict()) for k in order}

    blocks = list(range(1, len(CASES[name].dims) + 1))
    torch.manual_seed(1)
    first = states(blocks, seed=3)
    torch.manual_seed(2)
    again = states([*reversed(blocks), 2], seed=3)
    for k in blocks:
        torch.testing.assert_close(first[k], again[k], rtol=0, atol=0)
    other = states(blocks, seed=4)
    assert any(not torch.equal(value, other[2][key]) for key, value in first[2].items())


def test_blocks_of_one_shape_draw_different_feedback() -> None:
    task = Task((6,), 6)
    blocks = [nn.Linear(6, 6) for _ in range(4)]
    bll = BLL().rule_set(RuleContext(blocks, [(6,)] * 4, task, SGD(), 10, 1))
    second, third = (bll.rule(k).get_parameter("feedback.residual.0.weight") for k in (2, 3))
    assert second.shape == third.shape
    assert not torch.equal(second, third)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    bll = system("maps, convolutional heads")
    for k in (1, 2, 3):
        bll.rule(k)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_block_is_top_and_bottom() -> None:
    bll = BLL().rule_set(RuleContext([nn.Linear(3, CLASSES)], [(CLASSES,)], Task((3,), CLASSES), SGD(), 10, 1))
    rule = bll.rule(1)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    rule.forward_message((x,))
    metrics = rule.update(BatchPart(0), (x,), rule.receive_target(0, (y,)))
    assert set(metrics) == {"loss", "nll", "accuracy"}
    assert {name.split(".")[0] for name, _ in rule.named_parameters()} == {"block"}


@pytest.mark.parametrize("name", CASES)
def test_the_bottom_has_no_feedback_and_only_the_top_a_book_of_its_own(name: str) -> None:
    bll, top = system(name), len(CASES[name].dims)
    rules = [bll.rule(k) for k in range(1, top + 1)]
    assert [hasattr(rule, "feedback") and rule.feedback is not None for rule in rules] == [False] + [True] * (top - 1)
    assert ["codes" in rule.state_dict() for rule in rules] == [False] * (top - 1) + [True]


def build(case: Case, latent: LatentConfig, head: HeadConfig | None = None) -> RuleSet:
    context = RuleContext(case.blocks(), case.shapes, case.task, SGD(), 10, 1)
    return BLL(latent=latent, head=head or HeadConfig()).rule_set(context)


def test_categories_that_do_not_divide_the_latent_are_refused() -> None:
    vectors, maps = CASES["vectors"], CASES["maps"]
    with pytest.raises(ValueError, match=r"^algorithm\.latent\.categories=3: must divide 4\b.*$"):
        build(vectors, LatentConfig(family="categorical", categories=3))
    with pytest.raises(ValueError, match=r"^algorithm\.latent\.categories=5: must divide 12\b.*$"):
        build(maps, LatentConfig(family="categorical", categories=5), HeadConfig(convolutions=0, dim=16))
    # The option belongs to the categorical family alone, and the output layer is no latent of that family.
    build(vectors, LatentConfig(family="bernoulli", categories=3))
    build(vectors, LatentConfig(family="categorical", categories=2))


def test_code_books_of_more_classes_are_refused() -> None:
    many = (1 << 15) + 1
    task = Task((4,), many, ())
    context = RuleContext([nn.Linear(4, 2), nn.Linear(2, many)], [(2,), (many,)], task, SGD(), batches=1, seed=0)
    with pytest.raises(
        ValueError, match=r"^algorithm=bll: for 32769 classes a message down is .* allowed are at most 32"
    ):
        BLL().rule_set(context)
