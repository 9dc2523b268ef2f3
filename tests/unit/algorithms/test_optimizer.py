import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from counterflow.algorithms.optimizer import BatchPart, BlockOptimizer, lr_factor
from counterflow.config import SGD, AdamW, Muon, OptimizerConfig

QUARTER = (1 + math.sqrt(0.5)) / 2  # of a cosine from 1 to 0, after a quarter of the way


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 1.0, 50: 1.0, 99: 1.0}),
        ("cosine", 0, {0: 1.0, 25: QUARTER, 50: 0.5, 75: 1 - QUARTER, 99: (1 - math.cos(math.pi / 100)) / 2}),
        ("linear", 0, {0: 1.0, 25: 0.75, 50: 0.5, 99: 0.01}),
        ("constant", 3, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 99: 1.0}),
        ("cosine", 49, {0: 1 / 50, 25: QUARTER * 26 / 50, 49: (1 + math.cos(math.pi * 0.49)) / 2, 50: 0.5}),
        ("linear", 49, {0: 1 / 50, 25: 0.75 * 26 / 50, 49: 0.51, 99: 0.01}),
        ("linear", 199, {0: 1 / 200, 99: 0.01 * 0.5}),  # the run ends before the warm-up
    ],
)
def test_lr_factor_by_hand(schedule: str, warmup: int, expected: dict[int, float]) -> None:
    config = OptimizerConfig(schedule=schedule, warmup=warmup)
    assert {n: lr_factor(config, n, 100) for n in expected} == {n: pytest.approx(e) for n, e in expected.items()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 1.0, 50: 0.6, 100: 0.2}),
        ("linear", {0: 1.0, 50: 0.6, 100: 0.2}),
        ("constant", {0: 1.0, 100: 1.0}),
    ],
)
def test_a_schedule_falls_to_its_floor(schedule: str, expected: dict[int, float]) -> None:
    config = OptimizerConfig(schedule=schedule, floor=0.2)
    assert {n: lr_factor(config, n, 100) for n in expected} == {n: pytest.approx(e) for n, e in expected.items()}


def test_gradients_are_scaled_down_to_the_limit_together() -> None:
    """Norm 13 of (3, 4) and (12), or one that is given; a smaller one stays."""
    config = SGD(lr=1.0, momentum=0.0, schedule="constant", clip=6.5)
    for given_norm, share in ((None, 0.5), (26.0, 0.25), (5.0, 1.0)):
        first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
        first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
        optimizer = BlockOptimizer([first, second], config, batches=10)
        assert float(optimizer.squared_norm()) == 169.0
        optimizer.step(0, None if given_norm is None else torch.tensor(given_norm**2, dtype=torch.float64))
        assert first.tolist() == [-3.0 * share, -4.0 * share]
        assert second.tolist() == [-12.0 * share]


def test_a_block_without_gradients_has_norm_0() -> None:
    assert float(BlockOptimizer([], SGD(clip=1.0), 10).squared_norm()) == 0.0


@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(0, 20), st.integers(1, 20), st.data())
def test_lr_factor_is_a_share_that_is_never_0(schedule: str, warmup: int, batches: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, batches - 1))
    assert 0.0 < lr_factor(OptimizerConfig(schedule=schedule, warmup=warmup), n, batches) <= 1.0


@pytest.mark.parametrize("order", list(permutations([0, 2, 9])))
def test_a_step_uses_the_rate_of_its_batch_in_any_order(order: tuple[int, ...]) -> None:
    """lr 0.4 at a scale of 0.5; linear over 10 batches, with one batch of warm-up at half the rate."""
    expected = {0: 0.2 * 0.5 * 1.0, 2: 0.2 * 0.8, 9: 0.2 * 0.1}
    config = SGD(lr=0.4, momentum=0.0, schedule="linear", warmup=1)
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = BlockOptimizer([weight], config, batches=10, scale=0.5)
    for n in order:
        before, gradient = weight.detach().clone(), torch.randn(2, dtype=torch.float64)
        weight.grad = gradient
        optimizer.step(n)
        torch.testing.assert_close(weight.detach(), before - expected[n] * gradient)


def test_a_step_drops_the_gradients() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    BlockOptimizer([weight], SGD(), 10).step(0)
    assert weight.grad is None


def trajectory(optimizer: BlockOptimizer | torch.optim.Optimizer, weight: nn.Parameter) -> list[list[float]]:
    """Three steps with given gradients."""
    places = []
    for n, gradient in enumerate(([1.0, -2.0], [0.5, 3.0], [-4.0, 0.25])):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        if isinstance(optimizer, BlockOptimizer):
            optimizer.step(n)
        else:
            optimizer.step()
        places.append(weight.tolist())
    return places


def start() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))


def test_sgd_by_hand() -> None:
    """``v <- m v + g + decay w``; the step is ``v``, and ``g + decay w + m v`` with Nesterov's momentum."""
    for nesterov in (False, True):
        config = SGD(lr=0.1, momentum=0.7, weight_decay=0.2, nesterov=nesterov, schedule="constant")
        weight = start()
        places = trajectory(BlockOptimizer([weight], config, 10), weight)
        w, v, expected = [1.0, -3.0], [0.0, 0.0], []
        for gradient in ([1.0, -2.0], [0.5, 3.0], [-4.0, 0.25]):
            g = [gradient[i] + 0.2 * w[i] for i in range(2)]
            v = [0.7 * v[i] + g[i] for i in range(2)]
            w = [w[i] - 0.1 * (g[i] + 0.7 * v[i] if nesterov else v[i]) for i in range(2)]
            expected.append(w)
        torch.testing.assert_close(torch.tensor(places), torch.tensor(expected))


@pytest.mark.parametrize(
    ("config", "torchs"),
    [
        (
            AdamW(lr=0.1, betas=[0.6, 0.8], weight_decay=0.3, schedule="constant"),
            lambda w: torch.optim.AdamW([w], lr=0.1, betas=(0.6, 0.8), weight_decay=0.3),
        ),
        (AdamW(schedule="constant"), lambda w: torch.optim.AdamW([w], lr=1e-3, weight_decay=0.0)),
        (SGD(schedule="constant"), lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9)),
    ],
    ids=["adamw", "adamw by default", "sgd by default"],
)
def test_options_arrive_in_torchs_optimizer(config: OptimizerConfig, torchs: object) -> None:
    ours, expected = start(), start()
    assert callable(torchs)
    places = trajectory(BlockOptimizer([ours], config, 10), ours)
    assert places == trajectory(torchs(expected), expected)


@dataclass(kw_only=True)
class RpropConfig(OptimizerConfig):
    name: str = "rprop"


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^optimizer=rprop: allowed are sgd, adamw, muon$"):
        BlockOptimizer([start()], RpropConfig(), 10)


def test_backward_and_step_is_backward_and_a_step() -> None:
    ours, expected = start(), start()
    config = SGD(lr=0.1, schedule="constant")
    together, stepping = BlockOptimizer([ours], config, 10), BlockOptimizer([expected], config, 10)
    for n in range(3):
        together.backward_and_step((ours**2).sum(), BatchPart(n))
        expected.grad = 2 * expected.detach()
        stepping.step(n)
        torch.testing.assert_close(ours, expected)
    assert ours.grad is None


def test_a_gradient_that_comes_from_elsewhere_goes_on_backward() -> None:
    weight = start()
    BlockOptimizer([weight], SGD(), 10).backward(3 * weight, 0, torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0, -6.0]


def test_an_observer_gets_the_times_of_backward_and_update() -> None:
    weight, observed = start(), list[tuple[str, int, float, float]]()
    optimizer = BlockOptimizer([weight], SGD(), 10)
    optimizer.observe = lambda *span: observed.append(span)
    optimizer.backward_and_step(weight.sum(), BatchPart(4))
    assert [span[:2] for span in observed] == [("backward", 4), ("update", 4)]
    times = [time for span in observed for time in span[2:]]
    assert times == sorted(times)
    assert "observe" not in str(optimizer.state_dict())


@pytest.mark.parametrize("config", [SGD, AdamW])
def test_biases_and_norms_have_a_rate_and_a_decay_of_their_own(config: type[SGD] | type[AdamW]) -> None:
    options = config(lr=0.1, weight_decay=0.3, schedule="constant", bias_lr_scale=4.0, bias_decay=False)
    alone = config(lr=0.1, weight_decay=0.3, schedule="constant")
    free = config(lr=0.4, weight_decay=0.0, schedule="constant")
    layer, expected = nn.Linear(3, 2), nn.Linear(3, 2)
    expected.load_state_dict(layer.state_dict())
    apart = BlockOptimizer(layer.parameters(), options, 10)
    pair = BlockOptimizer([expected.weight], alone, 10), BlockOptimizer([expected.bias], free, 10)
    for n in range(3):
        x = torch.randn(5, 3)
        for module in (layer, expected):
            module(x).square().sum().backward()
        for optimizer in (apart, *pair):
            optimizer.step(n)
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)


def test_parts_of_muon_take_up_their_states_again() -> None:
    def made() -> tuple[nn.Linear, BlockOptimizer]:
        layer = nn.Linear(3, 4)
        return layer, BlockOptimizer(layer.parameters(), Muon(bias_lr_scale=2.0), 10, hidden=[layer.weight])

    def train(layer: nn.Linear, optimizer: BlockOptimizer, n: int) -> None:
        optimizer.backward_and_step(layer(torch.ones(2, 3) * (n + 1)).square().sum(), BatchPart(n))

    (first, before), (second, after) = made(), made()
    for n in range(3):
        train(first, before, n)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(deepcopy(before.state_dict()))
    for n in range(3, 6):
        train(first, before, n)
        train(second, after, n)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
