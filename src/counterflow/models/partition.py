"""Cutting a network into contiguous blocks of layers."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from statistics import median_low
from time import perf_counter_ns

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_PASSES = 5
"""Timed passes of a layer; the median of them is its cost."""


def partition(network: nn.Sequential, blocks: int, cut: str | Sequence[int], example: Tensor) -> list[nn.Sequential]:
    """Blocks, bottom to top, that together are ``network``: they share its modules and keep their names in it.

    Arguments and errors are those of ``layer_counts``.
    """
    ends = [0, *accumulate(layer_counts(network, blocks, cut, example))]
    return [network[start:end] for start, end in pairwise(ends)]


def layer_counts(network: nn.Sequential, blocks: int, cut: str | Sequence[int], example: Tensor) -> list[int]:
    """Number of layers of every block: ``cut`` itself if it is a list, else balanced by the costs that it names.

    ``example`` is a batch of inputs. With ``cut="measured"`` the result depends on the clock: ranks and resumed runs
    that are to agree must take one result and pass it on as ``cut``. Raises ``ValueError`` if there are more blocks
    than layers, or if a list does not fit the network.
    """
    layers = len(network)
    if blocks > layers:
        raise ValueError(f"blocks={blocks}: must be at most {layers}, the number of layers of the model")
    if isinstance(cut, str):
        return balance(layer_costs(network, example, cut), blocks)
    if len(cut) != blocks or min(cut) < 1 or sum(cut) != layers:
        raise ValueError(
            f"model.cut={list(cut)}: must be {blocks} numbers of at least 1 that sum to {layers}, "
            "the number of layers of the model"
        )
    return list(cut)


def balance(costs: Sequence[float], blocks: int) -> list[int]:
    """Number of layers of every block, at least 1 each, such that the largest block cost is the smallest possible.

    Among such cuts the second largest block cost is the smallest possible, and so on; what still ties goes to the
    cut with fewer layers in the lowest block, then in the next.
    """
    layers = len(costs)
    assert 1 <= blocks <= layers
    ends = [0, *accumulate(costs)]
    # best[i] is the best cut of the lowest i layers: (its block costs in descending order, its layer counts). In this
    # order better stays better when the same block is put on top of both, so that every best cut extends a best cut.
    best = {i: ([ends[i]], [i]) for i in range(1, layers + 1)}
    for block in range(2, blocks + 1):
        best = {
            i: min(
                (sorted([*best[j][0], ends[i] - ends[j]], reverse=True), [*best[j][1], i - j])
                for j in range(block - 1, i)
            )
            for i in range(block, layers + 1)
        }
    return best[layers][1]


def layer_costs(network: nn.Sequential, example: Tensor, cut: str) -> list[int]:
    """Cost of every layer, at least 1, so that a block of free layers still counts. Leaves ``network`` as it was.

    ``parameters``: their number. ``flops``: of the forward pass of one sample, as torch counts them (matrix products
    and convolutions only). ``measured``: nanoseconds of a forward and backward pass of the batch ``example``, a median.
    """
    match cut:
        case "parameters":
            costs = [sum(p.numel() for p in layer.parameters()) for layer in network]
        case "flops":
            costs = _flops(network, example[:1])
        case "measured":
            costs = _nanoseconds(network, example)
        case _:
            raise ValueError(f"model.cut={cut}: allowed are flops, parameters, measured, or a list of layer counts")
    return [max(1, cost) for cost in costs]


def output_shapes(blocks: Sequence[nn.Module], example: Tensor) -> list[tuple[int, ...]]:
    """Shape of every block's output without the batch dimension. Leaves the blocks as they were."""
    shapes = []
    activation = example[:1]
    for block in blocks:
        with torch.no_grad():
            activation = deepcopy(block).eval()(activation)
        shapes.append(tuple(activation.shape[1:]))
    return shapes


def _flops(network: nn.Sequential, activation: Tensor) -> list[int]:
    counts = []
    for layer in network:
        # With gradients: without, torch evaluates attention by a fused operation that it does not count.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            activation = deepcopy(layer).eval()(activation).detach()
        counts.append(counter.get_total_flops())
    return counts


def _nanoseconds(network: nn.Sequential, activation: Tensor) -> list[int]:
    medians = []
    # Dropout draws from the generator of the device.
    with torch.random.fork_rng(devices=[activation.device] if activation.is_cuda else []):
        for layer in network:
            timed = deepcopy(layer).train()
            source = activation.detach().requires_grad_(activation.is_floating_point())  # tokens have no gradient
            activation = timed(source)
            gradient = torch.ones_like(activation)
            _, *times = [_time(timed, source, gradient) for _ in range(1 + _PASSES)]  # the first warms up
            medians.append(median_low(times))
    return medians


def _time(layer: nn.Module, source: Tensor, gradient: Tensor) -> int:
    """Nanoseconds of one forward and backward pass; there is no backward where nothing has a gradient."""
    _synchronize(source)
    start = perf_counter_ns()
    output = layer(source)
    if output.requires_grad:
        output.backward(gradient)
    _synchronize(source)
    return perf_counter_ns() - start


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
