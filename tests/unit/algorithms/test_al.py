"""Associated learning against a plain loop, written here from the equations of the slides alone."""

import copy
import math
import re
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms import ALGORITHMS
from counterflow.algorithms.al import AL, ALRule, ALRules
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import Prediction, RuleSet
from counterflow.config import SGD, AdamW, OptimizerConfig
from counterflow.engine.job import Job
from counterflow.engine.local import run
from counterflow.trainer.job_builder import load_job
from counterflow.transport import connect
from tests.helpers.configs import configured
from tests.helpers.runs import SMALL, unrecorded
from tests.helpers.systems import CASES, CLASSES, head_config, labels, rule_context, specs

N = 4
STEPS = 12
EVALUATIONS = (4, 9, 11)
MODELS = {
    "mlp": ("model.width=32", "algorithm.dim=20"),
    "cnn with batch norm": (
        "model=cnn",
        "model.channels=[4,4,6,6]",
        "model.strides=[1,2,1,1]",
        "algorithm.dim=16",
        "algorithm.head.convolutions=0",
        "algorithm.head.dim=40",
    ),
    "cnn with convolutions in the bridges": (
        "model=cnn",
        "model.channels=[4,4,6,6]",
        "model.strides=[1,2,1,1]",
        "algorithm.dim=16",
        "algorithm.head.width=5",
    ),
}


@dataclass
class Seen:
    """Reports by block and batch."""

    metrics: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    accuracies: dict[tuple[int, int, str], float | None] = field(default_factory=dict)

    def should_log(self, n: int) -> bool:
        return True

    def on_step(self, block: int, n: int, metrics: dict[str, Tensor]) -> None:
        self.metrics[block, n] = {name: value.clone() for name, value in metrics.items()}

    def on_eval(self, block: int, n: int, split: str, figures: dict[str, float]) -> None:
        self.accuracies[block, n, split] = figures.get("accuracy")


@dataclass
class Components:
    """The components of a network, each list bottom to top."""

    f: list[nn.Module]
    g: list[nn.Module]
    b: list[nn.Module]
    h: list[nn.Module]

    def own(self, x: Tensor, i: int) -> Tensor:
        """The labels as component ``i`` predicts them: up through f_1..f_i, across b_i, down through h_i..h_1."""
        s = x
        for f in self.f[:i]:
            s = f.eval()(s)
            f.train()
        t = self.b[i - 1].eval()(s)
        self.b[i - 1].train()
        for h in reversed(self.h[:i]):
            t = h(t)
        return t.argmax(1)


def prepared(*overrides: str) -> tuple[Job, RuleSet]:
    job = load_job(configured(*SMALL, "algorithm=al", *overrides))
    assert isinstance(job.algorithm, AL)
    return job, job.algorithm.rule_set(job.rule_context)


def components(rules: list[ALRule]) -> Components:
    """Copies of the components of ``rules``."""
    f, g, b, h = ([copy.deepcopy(m) for m in ms] for ms in zip(*map(parts, rules), strict=True))
    return Components(f, g, b, h)


def parts(rule: ALRule) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    return rule.block, rule.encoder, rule.bridge, rule.decoder


def trained(job: Job, rule_set: RuleSet) -> tuple[list[ALRule], Seen]:
    """The rules after a run on one process."""
    rules: dict[int, ALRule] = {}
    seen = Seen()

    make = rule_set.rule

    def keep(block: int) -> ALRule:
        rule = make(block)
        assert isinstance(rule, ALRule)
        rules[block] = rule
        return rule

    rule_set.rule = keep  # type: ignore[method-assign]
    run(job, lambda _: rule_set, unrecorded(connect(None, 0, 1, timeout=30), seen))
    return [rules[k] for k in range(1, N + 1)], seen


@cache
def run_of(model: str) -> tuple[Job, list[ALRule], Seen]:
    """A run that several tests look at, and must not change."""
    job, rule_set = prepared(*MODELS[model])
    return job, *trained(job, rule_set)


def slides(job: Job, c: Components) -> Seen:
    """Train ``c`` in place."""
    seen = Seen()
    modules = [*c.f, *c.g, *c.b, *c.h]
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], weight_decay=0.0, fused=True)
    for n in range(STEPS):
        s, t = job.batches.inputs(n), F.one_hot(job.batches.labels(n), 10).float()
        for i in range(N):
            s_i, t_i = c.f[i](s), c.g[i](t)
            associated = ((c.b[i](s_i) - t_i.detach()) ** 2).sum(1).mean()
            autoencoder = ((c.h[i](t_i) - t) ** 2).sum(1).mean()
            associated.backward()
            autoencoder.backward()
            figures = {"loss": associated + autoencoder, "associated": associated, "autoencoder": autoencoder}
            seen.on_step(i + 1, n, {name: value.detach() for name, value in figures.items()})
            s, t = s_i.detach(), t_i.detach()
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1.0 + math.cos(math.pi * (n / STEPS)))
        optimizer.step()
        optimizer.zero_grad()
        if n in EVALUATIONS:
            for i in range(1, N + 1):
                for split in ("validation", "test") if n == EVALUATIONS[-1] else ("validation",):
                    seen.on_eval(i, n, split, {"accuracy": accuracy(job, c, i, split)})
    return seen


@torch.no_grad()
def accuracy(job: Job, c: Components, i: int, split: str) -> float:
    """Accuracy of component ``i``'s own prediction on all data of ``split``."""
    part = job.batches.test if split == "test" else job.batches.validation
    hits = sum(
        int((c.own(job.batches.evaluation_inputs(e), i) == job.batches.evaluation_labels(e)).sum()) for e in part
    )
    return hits / len(job.batches.labels_of(part))


@pytest.mark.parametrize("model", MODELS)
def test_equals_the_loop_of_the_slides_to_the_bit(model: str) -> None:
    job, rules, seen = run_of(model)
    fresh = prepared(*MODELS[model])[1]
    loop = components([fresh.rule(k) for k in range(1, N + 1)])  # type: ignore[misc]
    expected = slides(job, loop)

    assert seen.metrics == expected.metrics
    assert len(seen.metrics) == N * STEPS
    assert seen.accuracies == expected.accuracies
    assert len(seen.accuracies) == N * (len(EVALUATIONS) + 1)
    for k, rule in enumerate(rules, 1):
        copies = (loop.f[k - 1], loop.g[k - 1], loop.b[k - 1], loop.h[k - 1])
        for name, ours, value in zip("fgbh", parts(rule), copies, strict=True):
            assert ours.state_dict().keys() == value.state_dict().keys()
            for key, tensor in value.state_dict().items():
                assert torch.equal(ours.state_dict()[key], tensor), f"{key} of {name}_{k}"


def test_learning_moves_every_parameter_and_the_components_differ() -> None:
    """Otherwise the test above could compare what stands still, or rows that say the same."""
    fresh = prepared(*MODELS["mlp"])[1]
    before = components([fresh.rule(k) for k in range(1, N + 1)])  # type: ignore[misc]
    _, rules, seen = run_of("mlp")
    for k, rule in enumerate(rules):
        old = (before.f[k], before.g[k], before.b[k], before.h[k])
        for name, module, was in zip("fgbh", parts(rule), old, strict=True):
            for value, start in zip(module.parameters(), was.parameters(), strict=True):
                assert not torch.equal(value, start), f"{name}_{k + 1}"
    assert len({seen.accuracies[k, STEPS - 1, "test"] for k in range(1, N + 1)}) > 1


def test_encoders_and_decoders_start_with_the_normal_weights_of_he_and_bridges_at_zero() -> None:
    rules = AL(dim=300, head=head_config("vectors")).rule_set(rule_context("vectors"))
    for k in range(1, 5):
        rule = rules.rule(k)
        assert isinstance(rule, ALRule)
        assert not rule.bridge[1].weight.any()
        layers = [m for part in (rule.encoder, rule.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
        assert len(layers) == 2
        for layer in layers:
            assert not layer.bias.any()
            std = layer.weight.detach().std().item()
            assert std == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)


def test_the_top_bridge_reads_the_last_features_and_the_output_layer_is_gone() -> None:
    context = rule_context("maps")
    rule = AL(dim=9, head=head_config("maps")).rule_set(context).rule(3)
    assert isinstance(rule, ALRule)
    maps = torch.randn(4, 4, 4, 4)
    assert torch.equal(rule.block(maps), maps.flatten(1))
    assert rule.bridge[1].in_features == 64
    assert not list(rule.block.parameters())
    last = context.block(3).module[-1]  # type: ignore[index]
    assert not {id(p) for p in last.parameters()} & {id(p) for p in rule.parameters()}


def test_the_targets_side_learns_at_a_rate_of_its_own() -> None:
    """With plain SGD an update is proportional to the rate."""
    steps: dict[float, list[list[Tensor]]] = {}
    for scale in (0.0, 1.0, 2.0):
        context = rule_context("vectors", SGD(lr=0.01, momentum=0.0, schedule="constant"))
        rule = AL(dim=9, head=head_config("vectors"), target_lr_scale=scale).rule_set(context).rule(2)
        assert isinstance(rule, ALRule)
        before = [[p.detach().clone() for p in part.parameters()] for part in parts(rule)]
        torch.manual_seed(3)
        message = torch.randn(4, 6), torch.randn(4, 9)
        rule.forward_message(message)
        rule.update(BatchPart(0), message, ())
        steps[scale] = [
            [p.detach() - old for p, old in zip(part.parameters(), olds, strict=True)]
            for part, olds in zip(parts(rule), before, strict=True)
        ]
    for index in (0, 2):  # f and b
        torch.testing.assert_close(steps[2.0][index], steps[1.0][index], rtol=0, atol=0)
    assert all(step.any() for step in steps[0.0][2])
    for index in (1, 3):  # g and h
        torch.testing.assert_close(steps[2.0][index], [2 * step for step in steps[1.0][index]], rtol=1e-3, atol=1e-6)
        assert not any(step.any() for step in steps[0.0][index])


# Prediction


def rows(rules: list[ALRule], x: Tensor) -> Tensor:
    """The labels as every component predicts them, ``[N, B]``, by the messages of the rules."""
    with torch.no_grad():
        message, owns = (x,), []
        for rule in rules:
            message, own = rule.eval().predict(message, ())
            owns.append(own)
        down: tuple[Tensor, ...] = ()
        for rule, own in zip(reversed(rules), reversed(owns), strict=True):
            down = rule.decode_prediction(own, down)
        for rule in rules:
            rule.train()
    assert isinstance(down, Prediction)
    return down.labels


def garbage(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=3.0)


def test_prediction_needs_the_effective_parameters_and_no_others() -> None:
    job, rules, seen = run_of("mlp")
    rules = copy.deepcopy(rules)
    x = torch.cat([job.batches.evaluation_inputs(e) for e in job.batches.test])
    predicted = rows(rules, x)
    y = job.batches.labels_of(job.batches.test)
    assert [float((row == y).double().mean()) for row in predicted] == pytest.approx(
        [seen.accuracies[k, STEPS - 1, "test"] for k in range(1, N + 1)]
    )

    for k, rule in enumerate(rules, 1):  # g_1..g_N and b_1..b_{N-1}
        garbage(rule.encoder)
        if k < N:
            garbage(rule.bridge)
    again = rows(rules, x)
    assert torch.equal(again[-1], predicted[-1])
    assert all(not torch.equal(again[k], predicted[k]) for k in range(N - 1)), "a component's own row needs its bridge"

    def changes_the_row(module: nn.Module) -> bool:
        garbage(module)
        return not torch.equal(rows(rules, x)[-1], predicted[-1])

    for module in [m for k, rule in enumerate(rules, 1) for m in ([rule.bridge] if k == N else []) + [rule.decoder]]:
        before = copy.deepcopy(module.state_dict())
        assert any(changes_the_row(module) for _ in range(5)), "one module in ten predicts the same class"
        module.load_state_dict(before)


def test_effective_modules_are_f_and_h_and_the_top_bridge() -> None:
    _, rule_set = prepared(*MODELS["mlp"])
    for k in range(1, N + 1):
        rule = rule_set.rule(k)
        assert isinstance(rule, ALRule)
        expected = [rule.block, rule.decoder] + ([rule.bridge] if k == N else [])
        assert {id(m) for m in rule.inference_modules} == {id(m) for m in expected}


# The contract with an engine


def system(name: str, optimizer: OptimizerConfig | None = None, seed: int = 1) -> ALRules:
    rules = AL(dim=9, head=head_config(name)).rule_set(rule_context(name, optimizer, seed))
    assert isinstance(rules, ALRules)
    return rules


def al_rules(name: str, **options: object) -> list[ALRule]:
    al = system(name, **options)  # type: ignore[arg-type]
    rules = [al.rule(k) for k in range(1, len(CASES[name].dims) + 1)]
    assert all(isinstance(rule, ALRule) for rule in rules)
    return rules  # type: ignore[return-value]


def test_it_is_known_by_its_name() -> None:
    assert ALGORITHMS["al"] is AL
    assert AL.predicts_down


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_messages_are_what_was_announced(name: str, batch: int) -> None:
    al, case = system(name), CASES[name]
    top = len(case.dims)
    rules = al_rules(name)
    for n in range(2):
        message: tuple[Tensor, ...] = (torch.randn(batch, *case.task.input_shape), labels(name, batch))
        for k, rule in enumerate(rules, 1):
            up = rule.forward_message(message)
            if k < top:
                assert specs(up) == al.activation(k, batch)
            rule.update(BatchPart(n), message, ())
            message = up
    message, owns = (torch.randn(batch, *case.task.input_shape),), []
    for k, rule in enumerate(rules, 1):
        message, own = rule.predict(message, ())
        owns.append(own)
        if k < top:
            assert specs(message) == al.test_activation(k, batch)
    down: tuple[Tensor, ...] = ()
    for k in range(top, 0, -1):
        down = rules[k - 1].decode_prediction(owns[k - 1], down)
        if k > 1:
            assert specs(down) == al.prediction(k - 1, batch)
    assert isinstance(down, Prediction)
    assert specs((down.labels,)) == (((top, batch, *case.task.label_shape), torch.int64),)
    assert specs((down.scores,)) == (((top, batch, *case.task.label_shape, CLASSES), torch.float32),)


@pytest.mark.parametrize("name", CASES)
def test_announced_shapes_by_hand(name: str) -> None:
    al, case = system(name), CASES[name]
    top = len(case.dims)
    for k in range(1, top):
        s = ((4, *case.shapes[k - 1]), torch.float32)
        assert al.activation(k, 4) == (s, ((4, *case.task.label_shape, 9), torch.float32))
        assert al.test_activation(k, 4) == (s,)
        assert al.prediction(k, 4) == (((top - k, 4, *case.task.label_shape, 9), torch.float32),)


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_reaches_the_message_from_below(name: str) -> None:
    below, above = al_rules(name)[:2]
    message = below.forward_message((torch.randn(4, *CASES[name].task.input_shape), labels(name)))
    assert not any(tensor.requires_grad for tensor in message)
    above.forward_message(message)
    above.update(BatchPart(0), message, ())
    assert all(parameter.grad is None for parameter in below.parameters())


def test_no_gradient_goes_into_a_target() -> None:
    """Of the two losses each trains its own half: as if the target of either were a constant."""
    rule = al_rules("vectors", optimizer=SGD(lr=1.0, momentum=0.0, schedule="constant"))[1]
    nn.init.normal_(rule.bridge[1].weight)  # at zero, it lets no gradient through to f
    f, g, b, h = map(copy.deepcopy, parts(rule))
    s_below, t_below = torch.randn(4, 6), torch.randn(4, 9)
    with torch.no_grad():
        s, t = f(s_below), g(t_below)
    rule.forward_message((s_below, t_below))
    rule.update(BatchPart(0), (s_below, t_below), ())
    for modules, loss in (
        ((f, b), lambda: ((b(f(s_below)) - t) ** 2).sum(1).mean()),
        ((g, h), lambda: ((h(g(t_below)) - t_below) ** 2).sum(1).mean()),
    ):
        parameters = [p for m in modules for p in m.parameters()]
        gradients = torch.autograd.grad(loss(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data -= gradient
    for ours, expected in zip(parts(rule), (f, g, b, h), strict=True):
        torch.testing.assert_close(ours.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-7)
    assert torch.equal(rule.forward_message((s_below, t_below))[0], f(s_below))
    assert not torch.equal(s, f(s_below))


def test_learning_leaves_no_gradient_and_no_graph() -> None:
    rule = al_rules("maps", optimizer=AdamW())[0]
    message = torch.randn(4, 2, 8, 8), labels("maps")
    rule.forward_message(message)
    metrics = rule.update(BatchPart(0), message, ())
    assert not any(value.requires_grad for value in metrics.values())
    assert all(parameter.grad is None for parameter in rule.parameters())


def test_parameters_are_a_function_of_the_seed_and_the_component() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(123)  # the global random state has no part in it
        again = al_rules("vectors")[1]
    rule, other, above = al_rules("vectors")[1], al_rules("vectors", seed=2)[1], al_rules("vectors")[2]
    assert torch.equal(rule.encoder[0].weight, again.encoder[0].weight)
    assert not torch.equal(rule.encoder[0].weight, other.encoder[0].weight)
    assert not torch.equal(rule.encoder[0].weight, above.encoder[0].weight)


def test_making_a_rule_draws_nothing_from_the_global_random_state() -> None:
    al = system("vectors")
    before = torch.get_rng_state()
    al.rule(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_metrics_of_the_network_are_sums() -> None:
    figures = [
        {"loss": 3.0, "associated": 1.0, "autoencoder": 2.0},
        {"loss": 7.0, "associated": 4.0, "autoencoder": 3.0},
    ]
    assert system("vectors").summarize(figures) == {"loss": 10.0, "associated": 5.0, "autoencoder": 5.0}


def test_labels_become_one_hot_codes_at_the_bottom_only() -> None:
    bottom = al_rules("vectors")[0]
    y = torch.tensor([2, 0, 4])
    _, t = bottom.forward_message((torch.randn(3, 3), y))
    codes = torch.zeros(3, CLASSES)
    codes[torch.arange(3), y] = 1.0
    assert torch.equal(t, bottom.encoder(codes))


@pytest.mark.parametrize("key", ["algorithm.dim", "algorithm.head.dim", "algorithm.head.width"])
def test_wrong_options_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}=0: must be at least 1 and at most 1048576$"):
        configured("algorithm=al", f"{key}=0")


def test_a_wrong_rate_of_the_targets_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.target_lr_scale=-1\.0: must be at least 0 and at most "):
        AL(target_lr_scale=-1.0)


def test_the_width_of_the_target_side_is_checked_without_a_configuration_too() -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.dim=0: must be at least 1 and at most 1048576$"):
        AL(dim=0)
