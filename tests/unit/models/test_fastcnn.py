"""The network against its published size and a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counterflow.config import FastCNNConfig
from counterflow.models import build


def test_published_size() -> None:
    network = build(FastCNNConfig(), (3, 32, 32), 10, seed=0)
    assert len(network) == 7
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    # Jordan (arXiv 2404.00498): 1,972,792 parameters, 24 * 12 of them frozen filters, without norm weights.
    assert sum(w.numel() for w in weights) == 24 * 64 * 9 + 64 * 64 * 9 + 64 * 256 * 9 + 3 * 256 * 256 * 9 + 2560
    assert sum(p.numel() for p in network.parameters()) == sum(w.numel() for w in weights) + 24 + 2 * (64 + 256 + 256)


@pytest.mark.parametrize(("pixels", "expected"), [(32, [15, 7, 3]), (28, [13, 6, 3]), (8, [3, 1, 1]), (1, [1, 1, 1])])
def test_feature_maps_never_vanish(pixels: int, expected: list[int]) -> None:
    network = build(FastCNNConfig(widths=[4, 6, 8]), (1, pixels, pixels), 5, seed=0)
    activation, sizes = torch.randn(2, 1, pixels, pixels), []
    for layer in network[:-1]:
        activation = layer(activation)
        sizes.append(activation.shape[2])
    assert sizes == [size for size in expected for _ in range(2)]
    assert network[-1](activation).shape == (2, 5)


def test_output_is_that_of_the_plain_functions() -> None:
    network = build(FastCNNConfig(widths=[26, 30], scale=0.5), (3, 8, 8), 5, seed=0)
    x = torch.randn(4, 3, 8, 8)
    a = F.gelu(F.conv2d(x, network[0][0].weight, network[0][0].bias))
    for width, (lower, upper) in ((26, (network[0][2], network[1][0])), (30, (network[2][0], network[3][0]))):
        for convolution, pools in ((lower, True), (upper, False)):
            identity = convolution.weight[: convolution.in_channels]
            assert torch.equal(F.conv2d(a, identity, padding=1), a)
            a = F.conv2d(a, convolution.weight, padding=1)
            a = F.max_pool2d(a, 2) if pools else a
            a = F.gelu((a - a.mean((0, 2, 3), keepdim=True)) / (a.var((0, 2, 3), False, True) + 1e-5).sqrt())
        assert a.shape[1] == width
    expected = 0.5 * a.amax((2, 3)) @ network[-1][2].weight.T
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
