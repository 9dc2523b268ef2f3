import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from counterflow.algorithms.bll import BLL
from counterflow.algorithms.rule import RuleContext, RuleSet, Task
from counterflow.config import SGD, HeadConfig, LatentConfig
from counterflow.models.head import Head, without_output_layer


def head(shape: tuple[int, ...], **options: int) -> Head:
    """A pooled head unless ``options`` say otherwise."""
    return Head(shape, HeadConfig(**{"convolutions": 0, **options}))


def categorical(shape: tuple[int, ...], categories: int) -> RuleSet:
    """BLL with a categorical latent and a pooled head, for a bottom block with outputs of ``shape``."""
    bll = BLL(head=HeadConfig(convolutions=0), latent=LatentConfig(family="categorical", categories=categories))
    blocks = [nn.Identity(), nn.Linear(shape[-1], 7)]
    return bll.rule_set(RuleContext(blocks, [shape, (7,)], Task(shape, 7), SGD(), 10, 1))


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((7,), {}, (7,)),
        ((7,), {"dim": 2}, (7,)),  # the bound is for feature maps
        ((5, 7), {"dim": 2, "convolutions": 2}, (5, 7)),
        ((3, 8, 8), {}, (3 * 8 * 8,)),
        ((3, 8, 8), {"dim": 3 * 8 * 8 - 1}, (3 * 7 * 7,)),
        ((3, 8, 8), {"dim": 3}, (3,)),
        ((3, 4, 9), {}, (3 * 4 * 4,)),
        ((64, 28, 28), {"dim": 512}, (64 * 2 * 2,)),
        ((3, 8, 8), {"convolutions": 1, "width": 5}, (5 * 4 * 4,)),
        ((3, 7, 5), {"convolutions": 2, "width": 5}, (5 * 2 * 2,)),
        ((3, 8, 8), {"convolutions": 2, "width": 5, "dim": 19}, (5,)),
        ((3, 1, 1), {"convolutions": 3, "width": 5}, (3,)),
    ],
)
def test_shapes(shape: tuple[int, ...], options: dict[str, int], expected: tuple[int, ...]) -> None:
    module = head(shape, **options)
    assert module(torch.randn(2, *shape)).shape == (2, *expected)
    assert module.dim == expected[-1]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 150))
def test_maps_are_pooled_no_further_than_to_the_bound(channels: int, height: int, width: int, dim: int) -> None:
    module = head((channels, height, width), dim=dim)
    squares = [channels * side * side for side in range(1, min(height, width) + 1)]
    within = [square for square in squares if square <= dim]
    # Every channel is left one number at least, whatever the bound.
    assert module.dim == max(within, default=channels)
    assert module(torch.randn(2, channels, height, width)).shape == (2, module.dim)


@pytest.mark.parametrize(("pixels", "expected"), [(28, [14, 7, 4, 2, 1]), (9, [5, 3, 2, 1])])
def test_each_convolution_halves_the_pixels(pixels: int, expected: list[int]) -> None:
    for count, side in enumerate(expected, 1):
        module = head((2, pixels, 2 * pixels), convolutions=count, width=3, dim=10**6)
        maps = module.convolutions(torch.randn(2, 2, pixels, 2 * pixels))
        assert maps.shape[:3] == (2, 3, side)
        assert module.dim == 3 * side * side
    kinds = [type(m) for m in module.convolutions]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * len(expected)


def test_convolutions_end_at_one_pixel() -> None:
    """torch 2.15's bfloat16 convolutions of one pixel have a gradient that differs from call to call."""
    module = head((2, 5, 3), convolutions=9, width=7)
    assert len(module.convolutions) == 3 * 3  # 3 x 2, 2 x 1, 1 x 1
    assert module(torch.randn(2, 2, 5, 3)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 4, 4)])
def test_without_convolutions_there_are_no_parameters(shape: tuple[int, ...]) -> None:
    assert not head(shape).state_dict()


def test_pooling_is_the_mean_over_patches() -> None:
    """A map of 4x4 pixels becomes 2x2, then its numbers have mean 0 and variance 1."""
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    patches = torch.stack(
        [maps[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], dim=2
    ).flatten(1)
    expected = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head((3, 4, 4), dim=12)(maps), expected)


@pytest.mark.parametrize(
    ("shape", "options"), [((40,), {}), ((5, 40), {}), ((3, 8, 8), {}), ((3, 8, 8), {"convolutions": 1})]
)
def test_every_latent_has_mean_0_and_variance_1(shape: tuple[int, ...], options: dict[str, int]) -> None:
    u = head(shape, **options)(3.0 + 10.0 * torch.randn(4, *shape))
    torch.testing.assert_close(u.mean(-1), torch.zeros(u.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(u.var(-1, correction=0), torch.ones(u.shape[:-1]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("shape", "multiple"), [((12,), 5), ((3, 12), 5), ((3, 2, 2), 5), ((3, 4, 4), 32)])
def test_a_latent_that_is_no_multiple_is_refused(shape: tuple[int, ...], multiple: int) -> None:
    dim = head(shape).dim
    with pytest.raises(ValueError, match=rf"^algorithm\.latent\.categories={multiple}: must divide {dim}\b[^\n]*$"):
        categorical(shape, multiple)


@pytest.mark.parametrize(("shape", "multiple"), [((12,), 4), ((3, 12), 12), ((3, 2, 2), 6), ((3, 4, 4), 16)])
def test_a_multiple_is_taken(shape: tuple[int, ...], multiple: int) -> None:
    categorical(shape, multiple)
    assert head(shape).dim % multiple == 0


def test_gradients_reach_every_parameter_and_the_activation() -> None:
    module = head((2, 9, 9), convolutions=2, width=4)
    a = torch.randn(4, 2, 9, 9, requires_grad=True)
    u = module(a)
    u.backward(torch.randn_like(u))
    assert a.grad is not None
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert a.grad.any()


def test_the_last_features_are_the_input_of_the_output_layer() -> None:
    """The linear layer in which a block ends goes, however deep it is; names and modules of the rest stay."""
    flat = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    nested = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    for block, shape, features in ((flat, (6,), (5,)), (nested, (2, 3, 3), (4,))):
        before = block.state_dict()
        rest, found = without_output_layer(block, (3,))
        assert found == features
        assert rest(torch.randn(2, *shape)).shape == (2, *features)
        *_, weight, bias = before
        assert list(rest.state_dict()) == [name for name in before if name not in (weight, bias)]
        assert all(rest.state_dict()[name].data_ptr() == before[name].data_ptr() for name in rest.state_dict())
        assert list(block.state_dict()) == list(before), "the block itself does not change"


def test_a_block_that_is_the_output_layer_alone_has_its_input_as_features() -> None:
    rest, found = without_output_layer(nn.Sequential(nn.Linear(6, 3)), (7, 3))
    x = torch.randn(2, 7, 6)
    assert found == (7, 6)
    assert torch.equal(rest(x), x)


@pytest.mark.parametrize("block", [nn.Sequential(nn.Linear(6, 3), nn.Sequential(nn.Tanh())), nn.Bilinear(2, 2, 3)])
def test_a_block_that_ends_in_anything_else_stays(block: nn.Module) -> None:
    rest, found = without_output_layer(block, (3,))
    assert rest is block
    assert found == (3,)
