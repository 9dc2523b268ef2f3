from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent

from counterflow.algorithms.bll import latent_kl, posterior
from tests.helpers.systems import FAMILIES, distribution, log_q, mean, rho

CATEGORIES = 3


def example(seed: int, batch: int, classes: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """``u``, ``codes`` and ``labels``, float64."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, dim, dtype=torch.float64, generator=generator),
        torch.randn(classes, dim, dtype=torch.float64, generator=generator),
        torch.randint(classes, (batch,), generator=generator),
    )


examples = st.builds(
    example, st.integers(0, 2**32 - 1), batch=st.integers(1, 5), classes=st.integers(1, 6), dim=st.integers(1, 7)
)


@settings(deadline=None)
@given(examples)
def test_it_is_u_and_the_gradient_of_the_log_likelihood(given: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.testing.assert_close(posterior(*given), rho(*given), rtol=1e-10, atol=1e-12)


def test_by_hand() -> None:
    u = torch.tensor([[0.0, 0.0]])
    codes = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # both classes are equally likely: the mean code is (1, 2)
    assert posterior(u, codes, torch.tensor([0])).tolist() == [[1.0, -2.0]]
    assert posterior(u, codes, torch.tensor([1])).tolist() == [[-1.0, 2.0]]


@settings(deadline=None)
@given(examples)
def test_gaussian_kl_has_the_gradient_of_the_local_cross_entropy(given: tuple[Tensor, Tensor, Tensor]) -> None:
    u, codes, y = given
    u.requires_grad_()
    kl = latent_kl("gaussian", 1, posterior(u.detach(), codes, y), u).mean()
    (gradient,) = torch.autograd.grad(kl, u)
    (expected,) = torch.autograd.grad(-log_q(u, codes, y).mean(), u)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def statistics(name: str, d: int) -> Tensor:
    """``T(z)`` of every state of a latent of ``d`` dimensions: ``[states, d]``."""
    if name == "bernoulli":
        return torch.tensor(list(product([0.0, 1.0], repeat=d)), dtype=torch.float64)
    indicators = torch.eye(CATEGORIES, dtype=torch.float64)
    return torch.stack([torch.cat(state) for state in product(indicators, repeat=d // CATEGORIES)])


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_it_is_alpha_times_the_likelihood_made_log_linear_in_every_state(name: str) -> None:
    """Sums over all states: ``rho(z)`` is proportional to ``alpha(z) exp(T(z) . (r - u))`` and a family's member."""
    u, codes, y = example(3, batch=4, classes=5, dim=6)
    T = statistics(name, 6)
    r = posterior(u, codes, y)

    alpha = (u @ T.T).softmax(1)
    weights = alpha * ((r - u) @ T.T).exp()
    states = weights / weights.sum(1, keepdim=True)

    member = distribution(name, r, CATEGORIES)
    assert isinstance(member, Independent)
    values = T if name == "bernoulli" else T.unflatten(1, (-1, CATEGORIES)).argmax(2)
    log_states = torch.stack([member.log_prob(value.expand(4, -1)) for value in values], dim=1)
    torch.testing.assert_close(log_states.exp(), states)
    torch.testing.assert_close(mean(name, r, CATEGORIES), states @ T)
    kl = (states * (states / alpha).log()).sum(1)
    torch.testing.assert_close(latent_kl(name, CATEGORIES, r, u), kl)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_along_it_makes_the_label_likelier(name: str) -> None:
    u, codes, y = example(5, batch=16, classes=5, dim=6)
    natural = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(latent_kl(name, CATEGORIES, posterior(u, codes, y), natural).mean(), natural)
    assert log_q(u - 0.1 * gradient, codes, y).mean() > log_q(u, codes, y).mean()
