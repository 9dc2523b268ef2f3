"""Whitening against what it is for: patches without correlations."""

import torch
from torch import Tensor, nn

from counterflow.models.whitening import Whitening, initialize


def images(count: int = 40) -> torch.Tensor:
    noise = torch.randn(count, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    return noise.cumsum(2) + 0.5 * noise.mean(1, keepdim=True)


def test_patches_come_out_uncorrelated_with_variance_1() -> None:
    layer = Whitening(3, epsilon=0.0)
    layer.initialize(images(700))  # more than are in memory at a time
    with torch.no_grad():
        white = layer(images(700)).transpose(0, 1).flatten(1)
    assert white.shape == (24, 700 * 8 * 6)
    torch.testing.assert_close(white[:12] @ white[:12].T / white.shape[1], torch.eye(12), rtol=0, atol=1e-3)
    torch.testing.assert_close(white[12:], -white[:12])


def test_small_eigenvalues_are_damped_and_come_last() -> None:
    layer = Whitening(1, (1, 2), epsilon=0.25)
    flat = torch.randn(30, 1, 4, 1, generator=torch.Generator().manual_seed(0)).expand(30, 1, 4, 5)
    layer.initialize(flat)
    strength = 1 / (2 * flat.double().square().mean() + 0.25).sqrt()
    expected = torch.tensor([[1.0, 1.0], [0.0, 0.0]]) * strength.float() / 2**0.5
    torch.testing.assert_close(layer.weight[0].flatten(), expected[0])
    torch.testing.assert_close(layer.weight[1].flatten().norm(), torch.tensor(2.0))


def test_only_the_samples_count() -> None:
    one, two = Whitening(3), Whitening(3)
    one.initialize(images())
    torch.manual_seed(3)
    two.initialize(images().to(memory_format=torch.channels_last))
    assert torch.equal(one.weight, two.weight)
    largest = one.weight[:12].flatten(1).gather(1, one.weight[:12].flatten(1).abs().argmax(1, keepdim=True))
    assert bool((largest > 0).all())


def test_filters_are_state_and_no_parameters() -> None:
    layer = Whitening(3)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_parts_deep_in_a_module_are_initialised() -> None:
    inner, expected = Whitening(3), Whitening(3)
    initialize(nn.Sequential(nn.Sequential(inner, nn.GELU()), nn.Flatten()), images)
    expected.initialize(images())
    assert torch.equal(inner.weight, expected.weight)


def test_samples_are_not_read_where_nothing_takes_them() -> None:
    def refused() -> Tensor:
        raise AssertionError("nothing is initialised from samples")

    initialize(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten()), refused)
