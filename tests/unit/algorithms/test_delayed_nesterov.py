"""Nesterov's method on late gradients, compared with its equations."""

import pytest
import torch
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.config import SGD, AdamW

STEPS = 40


def gradient(w: Tensor) -> Tensor:
    """Gradient of ``|A w - b|^2 / 2``, whose curvatures are 4 and 0.09."""
    a, b = torch.tensor([2.0, 0.3], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    return a * (a * w - b)


def late(optimizer: BlockOptimizer, weight: nn.Parameter, delay: int) -> list[Tensor]:
    """Places after each step with the gradient at the place of ``delay`` steps ago."""
    places = [weight.detach().clone()]
    for n in range(STEPS):
        weight.grad = gradient(places[max(0, n - delay)])
        optimizer.step(n)
        places.append(weight.detach().clone())
    return places


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_places_are_those_of_equation_10(delay: int, decay: float) -> None:
    """A rate that falls, and weight decay as a gradient at the place that is updated."""
    gamma, start = 0.9, torch.tensor([1.0, -3.0], dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    config = SGD(lr=0.2, momentum=gamma, weight_decay=decay, delay_corrected=True, schedule="linear")
    found = late(BlockOptimizer([weight], config, STEPS), weight, delay)
    w, before, ahead = start, start, [start]
    for t in range(STEPS):
        d = gamma * (w - before)
        eta = 0.2 * (1 - t / STEPS)
        g = gradient(ahead[max(0, t - delay)]) + decay * ahead[t]
        w, before = w + d - eta * (1 - gamma) * g, w
        ahead.append(w + gamma * (w - before))
    torch.testing.assert_close(torch.stack(found), torch.stack(ahead))


def test_at_a_constant_rate_it_is_nesterovs_own_method_at_the_discounted_rate() -> None:
    corrected = SGD(lr=0.2, momentum=0.75, weight_decay=0.1, schedule="constant", delay_corrected=True)
    own = SGD(lr=0.05, momentum=0.75, weight_decay=0.1, schedule="constant", nesterov=True)
    weights = [nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64)) for _ in range(2)]
    found, expected = (
        late(BlockOptimizer([weight], config, STEPS), weight, 2)
        for weight, config in zip(weights, (corrected, own), strict=True)
    )
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("delay", [0, 3])
def test_in_adams_form_it_is_nadam_with_decoupled_decay(delay: int) -> None:
    """Dozat's momentum ``mu_t = b1 (1 - 0.96^(0.004 t) / 2)``, as in torch's documentation, written out."""
    b1, b2, lr, decay = 0.9, 0.8, 0.1, 0.3
    w = torch.tensor([1.0, -3.0], dtype=torch.float64)
    weight = nn.Parameter(w.clone())
    config = AdamW(lr=lr, betas=[b1, b2], weight_decay=decay, delay_corrected=True, schedule="constant")
    found = late(BlockOptimizer([weight], config, STEPS), weight, delay)
    m, v, product, places = torch.zeros_like(w), torch.zeros_like(w), 1.0, [w]
    for t in range(1, STEPS + 1):
        g = gradient(places[max(0, t - 1 - delay)])
        mu, following = (b1 * (1 - 0.5 * 0.96 ** (0.004 * s)) for s in (t, t + 1))
        product *= mu
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        ahead = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
        w = w - lr * decay * w - lr * ahead / ((v / (1 - b2**t)).sqrt() + 1e-8)
        places.append(w)
    torch.testing.assert_close(torch.stack(found), torch.stack(places), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [SGD(delay_corrected=True), AdamW(delay_corrected=True)], ids=["sgd", "adamw"])
def test_it_takes_up_its_state_again(config: SGD | AdamW) -> None:
    whole, broken = (nn.Parameter(torch.tensor([1.0, -3.0])) for _ in range(2))
    optimizers = [BlockOptimizer([weight], config, 10) for weight in (whole, broken)]
    for n in range(6):
        if n == 3:
            state = optimizers[1].state_dict()
            optimizers[1] = BlockOptimizer([broken], config, 10)
            optimizers[1].load_state_dict(state)
        for weight, optimizer in zip((whole, broken), optimizers, strict=True):
            weight.grad = torch.tensor([1.0 + n, -2.0])
            optimizer.step(n)
    assert torch.equal(whole, broken)


@pytest.mark.parametrize("config", [SGD(delay_corrected=True), AdamW(delay_corrected=True)], ids=["sgd", "adamw"])
def test_a_block_without_parameters_has_nothing_to_update(config: SGD | AdamW) -> None:
    optimizer = BlockOptimizer([], config, 10)
    optimizer.step(0)
    assert optimizer.state_dict() == BlockOptimizer([], SGD(), 10).state_dict()
