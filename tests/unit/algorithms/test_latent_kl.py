import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import kl_divergence

from counterflow.algorithms.bll import latent_kl
from tests.helpers.systems import FAMILIES, distribution, mean

CATEGORIES = 3


def parameters(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two sets of natural parameters ``[..., d]``; ``d`` is a whole number of categorical variables."""
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), CATEGORIES * draw(st.integers(1, 3)))
    scale = draw(st.sampled_from([0.01, 1.0, 4.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    return parameters(seed, *shape, scale=scale), parameters(seed + 1, *shape, scale=scale)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(pairs())
def test_kl_is_that_of_the_distributions(name: str, pair: tuple[Tensor, Tensor]) -> None:
    r, u = pair
    expected = kl_divergence(distribution(name, r, CATEGORIES), distribution(name, u, CATEGORIES))
    kl = latent_kl(name, CATEGORIES, r, u)
    assert kl.shape == r.shape[:-1]
    torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(pairs())
def test_kl_is_positive_and_zero_at_equality(name: str, pair: tuple[Tensor, Tensor]) -> None:
    r, u = pair
    assert (latent_kl(name, CATEGORIES, r, u) > 0).all()
    torch.testing.assert_close(latent_kl(name, CATEGORIES, u, u), torch.zeros_like(u[..., 0]), rtol=0, atol=1e-14)


def log_normaliser(name: str, u: Tensor) -> Tensor:
    """``log of the sum (or integral) of h(z) exp(z . u)``; ``h`` is the density of N(0, 1) for the Gaussian."""
    match name:
        case "gaussian":
            return 0.5 * u.square().sum(-1)
        case "bernoulli":
            return (1.0 + u.exp()).log().sum(-1)
        case _:
            return u.unflatten(-1, (-1, CATEGORIES)).exp().sum(-1).log().sum(-1)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_that_of_an_exponential_family(name: str) -> None:
    """``KL(r || u) = <mu(r), r - u> - A(r) + A(u)``, where ``mu`` is the gradient of the log normaliser ``A``."""
    r, u = parameters(0, 4, 2, 6).requires_grad_(), parameters(1, 4, 2, 6)
    (means,) = torch.autograd.grad(log_normaliser(name, r).sum(), r)
    r = r.detach()
    expected = (means * (r - u)).sum(-1) - log_normaliser(name, r) + log_normaliser(name, u)
    torch.testing.assert_close(latent_kl(name, CATEGORIES, r, u), expected)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(pairs())
def test_gradient_of_kl_is_the_difference_of_the_means(name: str, pair: tuple[Tensor, Tensor]) -> None:
    r, u = pair[0], pair[1].requires_grad_()
    (gradient,) = torch.autograd.grad(latent_kl(name, CATEGORIES, r, u).sum(), u)
    expected = mean(name, u.detach(), CATEGORIES) - mean(name, r, CATEGORIES)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "r", "u", "expected"),
    [
        ("gaussian", [100.0], [-100.0], 0.5 * 200.0**2),
        ("bernoulli", [500.0], [-500.0], 500.0),  # log of 1 / sigmoid(-500)
        ("bernoulli", [-500.0], [-500.0], 0.0),
        ("categorical", [500.0, 0.0, -500.0], [-500.0, 0.0, 500.0], 1000.0),
    ],
)
def test_far_apart_there_is_no_nan(name: str, r: list[float], u: list[float], expected: float) -> None:
    natural = torch.tensor(u).requires_grad_()
    kl = latent_kl(name, CATEGORIES, torch.tensor(r), natural)
    kl.backward()
    assert kl.item() == pytest.approx(expected)
    assert natural.grad is not None
    assert natural.grad.isfinite().all()


def test_categories_are_neighbours() -> None:
    """The latent ``[a, b, c, d]`` with two categories is the variables ``(a, b)`` and ``(c, d)``."""
    r, u = torch.tensor([0.0, 1.0, 100.0, 0.0]), torch.tensor([2.0, 0.0, 0.0, 3.0])
    parts = [latent_kl("categorical", 2, r[part], u[part]) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(latent_kl("categorical", 2, r, u), sum(parts))
