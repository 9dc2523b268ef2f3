"""Pred-Sim against a transcription of the equations of Noekland and Eidnes (arXiv 1901.06656), with autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms import ALGORITHMS
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.predsim import PredSim, PredSimRule, similarity
from counterflow.algorithms.rule import PerBlockRules, Prediction, RuleContext
from counterflow.config import SGD, AdamW, OptimizerConfig
from tests.helpers.systems import CASES, CLASSES, head_config, labels, rule_context, specs, travelling

LR = 0.5
NAMES = ("vectors", "maps", "maps, convolutional heads")
BETAS = (0.0, 0.3, 0.99, 1.0)


def system(name: str, beta: float = 0.99, optimizer: OptimizerConfig | None = None, seed: int = 1) -> PerBlockRules:
    plain = SGD(lr=LR, momentum=0.0, schedule="constant")
    rules = PredSim(beta=beta, head=head_config(name)).rule_set(rule_context(name, optimizer or plain, seed))
    assert isinstance(rules, PerBlockRules)
    return rules


def rule_of(name: str, block: int, beta: float = 0.99, **options: object) -> PredSimRule:
    rule = system(name, beta, **options).rule(block)  # type: ignore[arg-type]
    assert isinstance(rule, PredSimRule)
    return rule


def below(name: str, block: int, batch: int = 4) -> tuple[Tensor, ...]:
    """A message for ``block`` from below, float64."""
    case = CASES[name]
    shape = case.task.input_shape if block == 1 else case.shapes[block - 2]
    return (torch.randn(batch, *shape, dtype=torch.float64),)


# The equations, an entry at a time


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Adjusted cosine similarity of two vectors."""
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / ((x @ x).sqrt() * (y @ y).sqrt())


def matrix(rows: Tensor) -> Tensor:
    return torch.stack([torch.stack([cosine(x, y) for y in rows]) for x in rows])


def compared(rule: PredSimRule, a: Tensor) -> Tensor:
    """The standard deviation of every channel after a 3x3 convolution for maps; a linear map for vectors."""
    assert rule.branch is not None
    weight = rule.branch.layer.weight
    if a.ndim == 2:
        return a @ weight.T
    maps = F.conv2d(a, weight, padding=1)
    pixels = maps.shape[2] * maps.shape[3]
    mean = maps.sum((2, 3), keepdim=True) / pixels
    return (((maps - mean) ** 2).sum((2, 3)) / (pixels - 1)).sqrt()


def sim_loss(rule: PredSimRule, a: Tensor, y: Tensor) -> Tensor:
    codes = torch.eye(CLASSES, dtype=a.dtype)[y]
    return ((matrix(compared(rule, a)) - matrix(codes)) ** 2).mean()


def pred_loss(rule: PredSimRule, a: Tensor, y: Tensor) -> Tensor:
    assert rule.classifier is not None
    logits = rule.classifier(a)
    return -(logits.gather(1, y[:, None]).squeeze(1) - logits.exp().sum(1).log()).mean()


def close(ours: Tensor, expected: Tensor) -> None:
    """The published program adds 1e-8 to every norm, of which the equations know nothing."""
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(4, 6), (7, 3), (2, 2), (1, 5)])
def test_similarity_is_the_adjusted_cosine_of_every_two_rows(rows: int, width: int) -> None:
    x = torch.randn(rows, width, dtype=torch.float64) * 3.0 + 1.0
    s = similarity(x)
    close(s, matrix(x))
    close(s, s.T)
    close(s.diagonal(), torch.ones(rows, dtype=torch.float64))


def test_similarity_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0], [5.0, 7.0, 9.0], [0.0, 1.0, 0.0]])
    expected = [[1, -1, 1, 0], [-1, 1, -1, 0], [1, -1, 1, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(similarity(x), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def test_similarity_of_labels() -> None:
    """1 for one class, and ``-1 / (C - 1)`` for two: centred codes of the classes are a regular simplex."""
    y = torch.tensor([0, 3, 0, 2])
    same = (y[:, None] == y[None]).float()
    expected = same - (1 - same) / (CLASSES - 1)
    torch.testing.assert_close(similarity(F.one_hot(y, CLASSES).float()), expected, rtol=0, atol=1e-6)


def test_the_gradient_of_similarity_is_that_of_its_definition() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 4, dtype=torch.float64)
    (ours,) = torch.autograd.grad((similarity(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((matrix(x) * weights).sum(), x)
    close(ours, expected)


@pytest.mark.parametrize("constant", [0.0, 2.5])
def test_a_constant_row_is_similar_to_nothing_and_harms_no_gradient(constant: float) -> None:
    x = torch.randn(3, 4)
    x[1] = constant
    x.requires_grad_()
    s = similarity(x)
    assert torch.equal(s[1], torch.zeros(3))
    assert torch.equal(s[:, 1], torch.zeros(3))
    (gradient,) = torch.autograd.grad((s - torch.eye(3)).square().mean(), x)
    assert gradient.isfinite().all()
    assert gradient[1].abs().sum() == 0
    assert gradient[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_silent_sample_harms_no_parameter(name: str) -> None:
    """All zeros out of a ReLU: such a sample has nothing to compare."""
    rule = rule_of(name, 1)
    message = below(name, 1)
    rule.double()
    rule.block = nn.Sequential(rule.block, Silence())
    rule.forward_message(message)
    metrics = rule.update(BatchPart(0), message, (labels(name),))
    assert all(value.isfinite() for value in metrics.values())
    assert all(parameter.isfinite().all() for parameter in rule.parameters())


class Silence(nn.Module):
    """The first sample becomes zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x[:1]), x[1:]])


def test_maps_of_one_pixel_have_no_deviation_and_are_compared_as_vectors() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        blocks = [
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1)),
            nn.Sequential(nn.Flatten(), nn.Linear(3, 5)),
        ]
    case = CASES["maps"]
    rule = PredSim().rule_set(RuleContext(blocks, [(3, 1, 1), (5,)], case.task, SGD(), 10, 1)).rule(1)
    assert isinstance(rule, PredSimRule)
    message = (torch.randn(4, 2, 8, 8),)
    a = rule.forward_message(message)[0]
    assert rule.branch is not None
    expected = matrix(rule.branch.layer(a).flatten(1))
    wanted = matrix(F.one_hot(torch.tensor([0, 1, 1, 2]), CLASSES).float())
    metrics = rule.update(BatchPart(0), message, (torch.tensor([0, 1, 1, 2]),))
    torch.testing.assert_close(metrics["sim"], (expected - wanted).square().mean().detach(), rtol=1e-4, atol=1e-5)
    assert all(parameter.isfinite().all() for parameter in rule.parameters())


@pytest.mark.parametrize("top", [False, True])
def test_every_layer_with_parameters_may_have_a_similarity_loss(top: bool) -> None:
    case = CASES["vectors"]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        block = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        other = nn.Linear(CLASSES, CLASSES)
    blocks, shapes = ([other, block] if top else [block, other]), [(CLASSES,)] * 2
    layers = [(5,), (5,), (CLASSES,)]
    context = RuleContext(
        blocks, shapes, case.task, SGD(lr=LR, momentum=0.0), 10, 1, [[(CLASSES,)], layers] if top else [layers, []]
    )
    rule = PredSim(beta=0.25, similarity="layer", head=head_config("vectors")).rule_set(context).rule(1 + top).double()
    assert isinstance(rule, PredSimRule)
    assert list(rule.branches) == ["0"], (
        "the activation function has no weights of its own, the last layer is the block's"
    )
    rule = copy.deepcopy(rule)  # as the count of its FLOPs does; the copy keeps its own outputs
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randint(CLASSES, (4,))
    hidden = block.double()[0](x)
    output = block[2](hidden.tanh())
    codes = matrix(torch.eye(CLASSES, dtype=torch.float64)[y])
    inner = rule.branches["0"]
    assert isinstance(inner, nn.Module)
    sim = ((matrix(inner(hidden)) - codes) ** 2).mean()
    expected = 0.25 * sim
    if top:
        expected = expected + F.cross_entropy(output, y)
    else:
        expected = expected + 0.25 * sim_loss(rule, output, y) + 0.75 * pred_loss(rule, output, y)
        sim = sim + sim_loss(rule, output, y)
    rule.forward_message((x,))
    metrics = rule.update(BatchPart(0), (x,), (y,))
    close(metrics["loss"], expected.detach())
    close(metrics["sim"], sim.detach())


# Losses and gradients of a rule


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_learning_is_descent_of_the_published_loss(name: str, block: int, beta: float) -> None:
    rule = rule_of(name, block, beta).double()
    if rule.classifier is not None:
        nn.init.normal_(rule.classifier[1].weight)  # type: ignore[index, arg-type]  # at zero, it passes no gradient
    expected = copy.deepcopy(rule)
    message, y = below(name, block), labels(name)
    (up,) = rule.forward_message(message)
    metrics = rule.update(BatchPart(0), message, (y,))

    a = expected.block(message[0])
    assert torch.equal(up, a)
    figures: dict[str, Tensor] = {}
    loss = torch.zeros((), dtype=torch.float64)
    if beta < 1:
        assert expected.classifier is not None
        figures["nll"] = pred_loss(expected, a, y)
        figures["accuracy"] = (expected.classifier(a).argmax(1) == y).double().mean()
        loss = loss + (1 - beta) * figures["nll"]
    if beta > 0:
        figures["sim"] = sim_loss(expected, a, y)
        loss = loss + beta * figures["sim"]
    figures["loss"] = loss
    assert metrics.keys() == figures.keys()
    for key, value in figures.items():
        assert metrics[key].item() == pytest.approx(value.item(), rel=1e-6), key

    parameters = dict(expected.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    assert parameters.keys() == dict(rule.named_parameters()).keys()
    for (key, ours), start, gradient in zip(rule.named_parameters(), parameters.values(), gradients, strict=True):
        assert gradient.abs().sum() > 0, f"{key} stands still"
        close(ours.detach(), start.detach() - LR * gradient)


@pytest.mark.parametrize("name", NAMES)
def test_at_beta_0_there_is_only_the_classifier(name: str) -> None:
    rule = rule_of(name, 1, 0.0)
    assert rule.branch is None
    assert {key.split(".")[0] for key, _ in rule.named_parameters()} == {"block", "classifier"}


@pytest.mark.parametrize("name", NAMES)
def test_at_beta_1_there_is_only_the_similarity(name: str) -> None:
    rule = rule_of(name, 1, 1.0)
    assert rule.classifier is None
    assert {key.split(".")[0] for key, _ in rule.named_parameters()} == {"block", "branch"}
    message = (below(name, 1)[0].float(),)
    rule.forward_message(message)
    assert "accuracy" not in rule.update(BatchPart(0), message, (labels(name),))
    up, own = rule.predict(message, ())
    assert own is None
    assert torch.equal(up[0], rule.block(message[0]))


@pytest.mark.parametrize("name", NAMES)
def test_in_between_both_learn(name: str) -> None:
    rule = rule_of(name, 1, 0.5)
    assert {key.split(".")[0] for key, _ in rule.named_parameters()} == {"block", "classifier", "branch"}


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", NAMES)
def test_top_descends_the_cross_entropy_alone(name: str, beta: float) -> None:
    top = len(CASES[name].dims)
    rule = rule_of(name, top, beta).double()
    f = copy.deepcopy(rule.block)
    message, y = below(name, top), labels(name)
    rule.forward_message(message)
    metrics = rule.update(BatchPart(0), message, (y,))

    loss = F.cross_entropy(f(message[0]), y)
    loss.backward()
    assert metrics.keys() == {"loss", "nll", "accuracy"}
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert [key for key, _ in rule.named_parameters()] == [f"block.{key}" for key, _ in f.named_parameters()]
    for ours, parameter in zip(rule.block.parameters(), f.parameters(), strict=True):
        assert parameter.grad is not None
        close(ours.detach(), parameter.detach() - LR * parameter.grad)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_is_the_configured_one(name: str) -> None:
    """Of the block and both branches, by the batch index."""
    rule = rule_of(name, 1, optimizer=AdamW(lr=0.01, weight_decay=0.1)).double()
    expected = copy.deepcopy(rule)
    adamw = torch.optim.AdamW(expected.parameters(), weight_decay=0.1)
    for n in (0, 4):
        message, y = below(name, 1), labels(name)
        rule.forward_message(message)
        rule.update(BatchPart(n), message, (y,))
        a = expected.block(message[0])
        (0.01 * pred_loss(expected, a, y) + 0.99 * sim_loss(expected, a, y)).backward()
        adamw.param_groups[0]["lr"] = 0.01 * (1 + torch.tensor(torch.pi * n / 10, dtype=torch.float64).cos().item()) / 2
        adamw.step()
        adamw.zero_grad()
    for ours, parameter in zip(rule.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_crosses_to_the_block_below(name: str) -> None:
    pred_sim = system(name)
    first, second = pred_sim.rule(1), pred_sim.rule(2)
    message = first.forward_message((below(name, 1)[0].float(),))
    assert not any(tensor.requires_grad for tensor in message)
    second.forward_message(message)
    metrics = second.update(BatchPart(0), message, (labels(name),))
    assert all(parameter.grad is None for parameter in (*first.parameters(), *second.parameters()))
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", NAMES)
def test_labels_go_down_unchanged(name: str, beta: float) -> None:
    pred_sim = system(name, beta)
    y = labels(name)
    message: tuple[Tensor, ...] = (y,)
    for k in range(len(CASES[name].dims), 1, -1):
        rule = pred_sim.rule(k)
        message = rule.make_target(3, rule.receive_target(3, message))
        assert len(message) == 1
        assert torch.equal(message[0], y)
        assert travelling(message) == pred_sim.target(k - 1, 3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_messages_are_what_was_announced(name: str) -> None:
    pred_sim, case = system(name), CASES[name]
    top = len(case.dims)
    for step in ("train", "test"):
        message: tuple[Tensor, ...] = (torch.randn(4, *case.task.input_shape),)
        for k in range(1, top + 1):
            rule = pred_sim.rule(k)
            if step == "train":
                up = rule.forward_message(message)
                rule.update(BatchPart(0), message, (labels(name),))
            else:
                up, own = rule.predict(message, ())
                assert isinstance(own, Prediction)
                assert specs((own.labels,)) == specs((labels(name),))
                logits = rule.classifier(up[0])  # type: ignore[misc]
                assert torch.equal(own.labels, logits.argmax(1))
                assert torch.equal(own.scores, logits)
            announced = pred_sim.activation if step == "train" else pred_sim.test_activation
            assert specs(up) == announced(k, 4) == (((4, *case.shapes[k - 1]), torch.float32),)
            message = tuple(tensor.detach() for tensor in up)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_blocks_are_effective(name: str) -> None:
    for k in range(1, len(CASES[name].dims) + 1):
        rule = rule_of(name, k)
        assert list(rule.inference_modules) == [rule.block]


@pytest.mark.parametrize("name", NAMES)
def test_branches_are_a_function_of_the_seed_and_the_block(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(123)
        again = rule_of(name, 1)
    before = torch.get_rng_state()
    rule, other = rule_of(name, 1), rule_of(name, 1, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("classifier", "branch"):
        ours, same, differs = (dict(r.get_submodule(part).named_parameters()) for r in (rule, again, other))
        assert ours.keys()
        for key, value in ours.items():
            assert torch.equal(value, same[key])
            if len(value.unique()) > 1:  # batch norm begins with ones and zeros
                assert not torch.equal(value, differs[key])


def test_it_is_known_by_its_name_and_its_loss_is_the_sum() -> None:
    assert ALGORITHMS["predsim"] is PredSim
    assert not PredSim.predicts_down
    assert system("maps").summarize([{"loss": 1.0, "sim": 5.0}, {"loss": 2.0, "nll": 2.0}]) == {"loss": 3.0}


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_a_weight_is_between_0_and_1(beta: float) -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.beta=.*: must be between 0 and 1$"):
        PredSim(beta=beta)


def test_local_classifiers_start_with_weights_of_zero() -> None:
    rules = PredSim(head=head_config("maps")).rule_set(rule_context("maps"))
    for k in (1, 2):
        classifier = rules.rule(k).classifier
        assert not classifier[1].weight.any()  # type: ignore[index, union-attr]
