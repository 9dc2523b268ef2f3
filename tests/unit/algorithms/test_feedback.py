import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterflow.algorithms.bll import Feedback, centre
from counterflow.config import FeedbackConfig

KINDS = ["linear", "mlp"]


def codes(classes: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(classes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def feedback(above: int, below: int, kind: str = "mlp", norm: float = 1.0, hidden: int = 9) -> Feedback:
    return Feedback(above, below, FeedbackConfig(kind=kind, norm=norm, hidden=hidden)).double()


def centred(book: Tensor, norm: float) -> Tensor:
    """Without the mean code, and such that the mean of the squared lengths is ``norm`` squared."""
    rows = [row - sum(book) / len(book) for row in book]
    squares = sum(float(row @ row) for row in rows) / len(rows)
    return torch.stack([row * norm / squares**0.5 for row in rows])


@settings(deadline=None)
@given(
    st.integers(2, 7), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from([1e-3, 1e3])
)
def test_centring(classes: int, dim: int, seed: int, norm: float, scale: float) -> None:
    book = scale * (codes(classes, dim, seed) + 1.0)
    result = centre(book, norm)
    assert result.shape == book.shape
    torch.testing.assert_close(result.mean(0), torch.zeros(dim, dtype=torch.float64), rtol=0, atol=1e-9 * norm)
    rms = result.square().sum(1).mean().sqrt().item()
    assert rms == pytest.approx(norm, rel=1e-9)
    torch.testing.assert_close(result, centred(book, norm), rtol=1e-6, atol=1e-9 * norm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("above", "below"), [(6, 6), (6, 4), (4, 6)])
def test_it_starts_as_the_skip_alone(kind: str, above: int, below: int) -> None:
    module, book = feedback(above, below, kind, norm=3.0), codes(5, above)
    torch.testing.assert_close(module(book), centred(book @ module.skip.detach().T, 3.0))


@pytest.mark.parametrize("kind", KINDS)
def test_between_equal_widths_the_skip_is_the_identity(kind: str) -> None:
    assert torch.equal(feedback(6, 6, kind).skip, torch.eye(6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("above", "below"), [(6, 4), (4, 6), (10, 512), (7, 1)])
def test_between_other_widths_it_is_orthogonal(kind: str, above: int, below: int) -> None:
    skip = feedback(above, below, kind).skip.detach()
    assert skip.shape == (below, above)
    product = skip @ skip.T if below < above else skip.T @ skip
    torch.testing.assert_close(product, torch.eye(min(above, below), dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_wider_book_keeps_all_that_the_codes_say() -> None:
    """Orthogonal columns: the angles between codes stay what they are."""
    book = codes(5, 4)
    below = feedback(4, 32)(book)
    torch.testing.assert_close(below @ below.T, centred(book, 1.0) @ centred(book, 1.0).T, rtol=1e-5, atol=1e-5)


def test_an_mlp_adds_to_the_skip_what_it_has_learnt() -> None:
    module, book = feedback(6, 4, norm=2.0), codes(5, 6)
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    first, bias = state["residual.0.weight"], state["residual.0.bias"]
    hidden = (book @ first.T + bias).clamp_min(0.0)
    assert hidden.shape == (5, 9)
    torch.testing.assert_close(
        module(book), centred(book @ state["skip"].T + hidden @ state["residual.2.weight"].T, 2.0)
    )


def test_what_is_trained() -> None:
    linear, mlp = feedback(6, 4, "linear"), feedback(6, 4, "mlp")
    assert {name for name, _ in linear.named_parameters()} == {"skip"}
    assert {name for name, _ in mlp.named_parameters()} == {
        "residual.0.weight",
        "residual.0.bias",
        "residual.2.weight",
    }
    assert {name for name, _ in mlp.named_buffers()} == {"skip"}
    assert linear.state_dict().keys() == {"skip"}
    assert "skip" in mlp.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: str) -> None:
    module, book, direction = feedback(6, 4, kind), codes(5, 6), codes(5, 4, seed=1)
    (module(book) * direction).sum().backward()
    last = list(module.parameters())[-1]
    assert last.grad is not None
    assert last.grad.any()
    with torch.no_grad():
        last -= last.grad  # behind weights of zero there is no gradient yet
    (module(book) * direction).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("book", [torch.zeros(5, 6), torch.full((5, 6), 0.1), torch.randn(6).expand(5, 6), codes(1, 6)])
def test_codes_without_a_difference_give_numbers(kind: str, book: Tensor) -> None:
    module = feedback(6, 4, kind)
    below = module(book.double())
    assert below.isfinite().all()
    below.backward(torch.ones_like(below))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
