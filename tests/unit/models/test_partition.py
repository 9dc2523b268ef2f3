import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import accumulate, combinations, pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from counterflow.config import CNNConfig, MLPConfig
from counterflow.models import build
from counterflow.models.partition import (
    LayerStats,
    balance,
    best_of,
    block_shapes,
    block_sizes,
    layer_costs,
    layer_times,
    min_max_partition,
    profile_layers,
    refine_partition,
    split_network,
)

CUTS = ["flops", "parameters"]


def stats(network: nn.Sequential, *shape: int) -> list[LayerStats]:
    return profile_layers(network, torch.randn(4, *shape))


def mlp() -> nn.Sequential:
    return build(MLPConfig(), (1, 8, 8), 10, seed=1)


def block_costs(costs: Sequence[float], counts: Sequence[int]) -> list[float]:
    return [sum(costs[start:end]) for start, end in pairwise([0, *accumulate(counts)])]


def every_cut(layers: int, blocks: int) -> list[list[int]]:
    return [[b - a for a, b in pairwise([0, *ends, layers])] for ends in combinations(range(1, layers), blocks - 1)]


@st.composite
def balance_inputs(draw: st.DrawFn) -> tuple[list[int], int]:
    costs = draw(st.lists(st.integers(0, 12), min_size=1, max_size=10))
    return costs, draw(st.integers(1, len(costs)))


@settings(deadline=None)
@given(balance_inputs())
def test_balance_is_the_best_of_all_cuts(inputs: tuple[list[int], int]) -> None:
    costs, blocks = inputs

    def order(counts: list[int]) -> tuple[list[float], list[int]]:
        return sorted(block_costs(costs, counts), reverse=True), counts

    assert balance(costs, blocks) == min(every_cut(len(costs), blocks), key=order)


@pytest.mark.parametrize(
    ("costs", "blocks", "counts"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([1] * 10, 4, [2, 2, 3, 3]),
        ([9, 1, 1, 1], 3, [1, 1, 2]),  # the largest block is fixed; the rest is still shared out
        ([1, 2, 1], 2, [1, 2]),  # a tie: fewer layers at the bottom
        ([0, 0, 5, 0, 0], 3, [1, 1, 3]),
        ([0.5, 0.25, 0.25], 2, [1, 2]),
        ([7], 1, [1]),
    ],
)
def test_balance_by_hand(costs: list[float], blocks: int, counts: list[int]) -> None:
    assert balance(costs, blocks) == counts


def test_balance_of_200_layers() -> None:
    counts = balance([1] * 200, 16)
    assert sorted(counts) == [12] * 8 + [13] * 8


def test_min_max_partition_by_costs_of_whole_blocks() -> None:
    """A block that ends with layer 2 costs 5 more: the even cut is not the best one."""
    assert min_max_partition(lambda start, end: end - start + 5 * (end == 2), 4, 2) == [1, 3]


class Clock:
    """Cost of blocks: that of their layers, and an extra that depends on their last layer."""

    def __init__(self, layers: Sequence[float], extra: dict[int, float]) -> None:
        self.layers, self.extra = layers, extra
        self.measured: list[tuple[int, int]] = []

    def __call__(self, counts: list[int], block: int) -> float:
        start, end = sum(counts[: block - 1]), sum(counts[:block])
        self.measured.append((start, end))
        return sum(self.layers[start:end]) + self.extra.get(end, 0.0)

    def slowest(self, counts: list[int]) -> float:
        return max(self(counts, block) for block in range(1, len(counts) + 1))


def test_refinement_finds_the_fastest_blocks_not_the_evenest_layers() -> None:
    clock = Clock([4, 4, 4, 4, 4, 4], {3: 6.0, 2: 1.0, 6: 3.0})
    assert balance(clock.layers, 2) == [3, 3]  # 18 | 15
    assert refine_partition(clock.layers, 2, clock) == [3, 3]  # any other has 4 layers and 19 at least
    clock = Clock([4, 4, 4, 4, 4, 4], {3: 9.0, 6: 1.0})
    assert refine_partition(clock.layers, 2, clock) == [2, 4]  # 17, and 21 before
    assert len(clock.measured) == len(set(clock.measured)), "a block is measured once"


@given(st.lists(st.integers(1, 12), min_size=2, max_size=7), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=50)
def test_refinement_is_never_slower_than_its_start(costs: list[int], blocks: int, data: st.DataObject) -> None:
    blocks = min(blocks, len(costs))
    extras = data.draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs)))
    clock = Clock(costs, dict(enumerate(extras, 1)))
    counts = refine_partition(costs, blocks, clock)
    assert sum(counts) == len(costs)
    assert clock.slowest(counts) <= clock.slowest(balance(costs, blocks))


def test_the_fastest_is_that_of_each_part_and_not_of_the_first_pass() -> None:
    passes = iter([(0, 0), (5, 10), (1, 30), (3, 20), (2, 50), (4, 40)])
    assert best_of(lambda: next(passes)) == [1, 10]
    assert not list(passes), "five passes after the first"


def test_slow_passes_are_few() -> None:
    passes = iter([(9, 9), (10**9, 7), (10**9 + 1, 8), (0, 0)])
    assert best_of(lambda: next(passes)) == [10**9, 7]
    assert list(passes) == [(0, 0)]


def test_without_gradients_of_inputs_a_layer_without_parameters_has_no_backward() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh())
    x = torch.randn(32, 8, 8)
    (_, through), _, _ = layer_times(network, x)
    (_, nothing), _, _ = layer_times(network, x, inputs=False)
    assert nothing < through


def test_parameters_are_counted_by_hand() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 5, bias=False)), nn.ReLU())
    assert layer_costs(stats(network, 3), "parameters") == [3 * 4 + 4, 4 * 5, 1]


def test_flops_are_counted_by_hand_for_one_sample() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),  # 7x5 pixels become 4x3
        nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.Linear(3 * 4 * 3, 10),
    )
    costs = layer_costs(stats(network, 2, 7, 5), "flops")
    assert costs == [2 * (4 * 3) * 3 * (2 * 3 * 3), 1, 2 * (3 * 4 * 3) * 10]


def test_times_show_the_expensive_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 512), nn.Linear(512, 1024), nn.Linear(1024, 4))
    costs = [forward + backward for forward, backward in layer_times(network, torch.randn(256, 4))]
    assert max(costs) == costs[1]


class OneHot(nn.Module):
    """Nothing to learn, nothing to count, and no gradient."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, 4).float()


def test_tokens_and_layers_without_gradient_have_costs() -> None:
    network = nn.Sequential(nn.Identity(), OneHot(), nn.Linear(4, 3))
    tokens = torch.randint(4, (8, 5))
    layers = profile_layers(network, tokens)
    assert layer_costs(layers, "flops") == [1, 1, 2 * 5 * 4 * 3]
    assert layer_costs(layers, "parameters") == [1, 1, 4 * 3 + 3]
    assert min(forward + backward for forward, backward in layer_times(network, tokens)) >= 1
    assert [layer.shape for layer in layers] == [(5,), (5, 4), (5, 3)]


class Recorder(nn.Module):
    """Records, for all of its copies, the number of samples and the mode of every call."""

    seen: ClassVar[set[tuple[int, bool, bool]]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((len(x), self.training, torch.is_grad_enabled()))
        return x * 1.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("use", "seen"), [(profile_layers, (1, False, True)), (layer_times, (6, True, True))])
def test_costs_are_taken_in_the_right_mode(
    use: Callable[[nn.Sequential, Tensor], object], seen: tuple[int, bool, bool], training: bool
) -> None:
    Recorder.seen.clear()
    network = nn.Sequential(nn.Linear(3, 3), Recorder()).train(training)
    use(network, torch.randn(6, 3))
    assert Recorder.seen == {seen}


@pytest.mark.parametrize("use", [profile_layers, layer_times])
def test_the_network_is_left_as_it_was(use: Callable[[nn.Sequential, Tensor], object]) -> None:
    network = build(CNNConfig(channels=[4, 4], strides=[1, 2], dropout=0.5), (1, 8, 8), 10, seed=1)
    x = torch.randn(4, 1, 8, 8)
    network(x).sum().backward()
    network[1].eval()
    state = deepcopy(network.state_dict())
    gradients = {name: (p.grad, p.grad.clone()) for name, p in network.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(network.parameters()))
    flags = [module.training for module in network.modules()]
    sample, generator = x.clone(), torch.get_rng_state()

    use(network, x)

    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    for name, parameter in network.named_parameters():
        assert parameter.grad is gradients[name][0]
        assert torch.equal(*gradients[name])
    assert [module.training for module in network.modules()] == flags
    assert torch.equal(x, sample)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)


def test_output_shapes_leave_out_the_batch() -> None:
    network = build(CNNConfig(), (1, 28, 28), 10, seed=1)
    layers = stats(network, 1, 28, 28)
    assert block_shapes(layers, [1, 3, 3]) == [(32, 28, 28), (128, 7, 7), (10,)]  # strides 1 | 2, 1, 2 | 1, 1
    assert block_shapes(layers, [7]) == [(10,)]
    assert block_shapes(layers, [1] * 7) == [layer.shape for layer in layers]


@pytest.mark.parametrize("cut", [*CUTS, [1, 3, 1]])
def test_blocks_share_the_layers_of_the_network_and_their_names(cut: str | list[int]) -> None:
    network = mlp()
    blocks = split_network(network, block_sizes(stats(network, 1, 8, 8), 3, cut))
    assert [id(layer) for block in blocks for layer in block] == [id(layer) for layer in network]
    assert [name for block in blocks for name in block.state_dict()] == list(network.state_dict())


def test_an_explicit_cut_is_taken_as_it_is() -> None:
    network = mlp()
    assert block_sizes(stats(network, 1, 8, 8), 3, [1, 3, 1]) == [1, 3, 1]
    assert [len(block) for block in split_network(network, [1, 3, 1])] == [1, 3, 1]


def test_named_cuts_balance_their_costs() -> None:
    # The convolution is cheap in parameters and dear in flops.
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 4), nn.Linear(4, 4))
    layers = stats(network, 1, 8, 8)
    assert block_sizes(layers, 2, "flops") == [1, 3]
    assert block_sizes(layers, 2, "parameters") == [2, 2]


@pytest.mark.parametrize("cut", [[2, 3], [1, 1, 2], [2, 2, 2], [0, 2, 3], [-1, 3, 3], [1, 1, 2, 1]])
def test_an_explicit_cut_that_does_not_fit_is_refused(cut: list[int]) -> None:
    message = f"model.cut={cut}: must be 3 numbers of at least 1 that sum to 5, the number of layers of the model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        block_sizes(stats(mlp(), 1, 8, 8), 3, cut)


@pytest.mark.parametrize("cut", ["flops", [1, 1, 1, 1, 1, 1]])
def test_more_blocks_than_layers_are_refused(cut: str | list[int]) -> None:
    with pytest.raises(ValueError, match=r"^blocks=6: must be at most 5, the number of layers of the model$"):
        block_sizes(stats(mlp(), 1, 8, 8), 6, cut)


def test_an_unknown_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.cut=time: allowed are flops, parameters, profile, or a list"):
        block_sizes(stats(mlp(), 1, 8, 8), 2, "time")
