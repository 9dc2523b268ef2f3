"""Partition of a network into contiguous blocks of layers, by their FLOPs, parameters or times."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate, pairwise
from time import perf_counter_ns
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_MAX_PASSES = 5
"""Timed passes of a layer, at most. The fastest is its cost, since other load on the machine only adds time."""
_MIN_PASSES = 2
_TIME_LIMIT = 1_000_000_000
"""Nanoseconds of timed passes after which no other pass of the same layer begins."""
_MAX_ROUNDS = 8
"""Partitions that are measured, at most, before the best of them is taken."""


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention on the CPU, which torch counts only since 2.15: ``cut: flops`` would depend on the version."""


def flop_counter() -> FlopCounterMode:
    """Counter of matrix products and convolutions, the same for every version of torch."""
    return FlopCounterMode(display=False, custom_mapping=_ATTENTION)


class LayerStats(NamedTuple):
    """Size and cost of one layer."""

    shape: tuple[int, ...]
    """Shape of the output without the batch dimension."""
    flops: int
    """Operations of the forward pass of one sample, as torch counts them: matrix products and convolutions only."""
    parameters: int
    """Number of parameters."""


def profile_layers(network: Iterable[nn.Module], example: Tensor) -> list[LayerStats]:
    """Statistics of every layer, from one forward pass of the first sample of ``example``, a batch of inputs.

    The pass runs in evaluation mode on copies of the layers, so ``network`` does not change. Where a layer is on the
    meta device, so is the rest of the pass.
    """
    layers = []
    activation = example[:1]
    for layer in network:
        if is_outline(layer):
            activation = activation.to("meta")
        # With gradients: without, torch evaluates attention by a fused operation that it does not count.
        with torch.enable_grad(), flop_counter() as counter:
            activation = deepcopy(layer).eval()(activation).detach()
        parameters = sum(p.numel() for p in layer.parameters())
        layers.append(LayerStats(tuple(activation.shape[1:]), counter.get_total_flops(), parameters))
    return layers


def is_outline(module: nn.Module) -> bool:
    """True if some of its parameters or buffers are on the meta device: names and shapes without values."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def layer_costs(layers: Sequence[LayerStats], cut: str) -> list[int]:
    """Cost of every layer by ``cut``, ``flops`` or ``parameters``; at least 1, since no layer is free in time."""
    if cut not in ("flops", "parameters"):
        raise ValueError(f"model.cut={cut}: allowed are flops, parameters, profile, or a list of layer counts")
    return [max(1, layer.flops if cut == "flops" else layer.parameters) for layer in layers]


def block_sizes(layers: Sequence[LayerStats], blocks: int, cut: str | Sequence[int]) -> list[int]:
    """Number of layers of every block: ``cut`` itself if it is a list, else balanced by the costs that it names.

    Raises ``ValueError`` if there are more blocks than layers, or if a list does not fit the network.
    """
    if blocks > len(layers):
        raise ValueError(f"blocks={blocks}: must be at most {len(layers)}, the number of layers of the model")
    if isinstance(cut, str):
        return balance(layer_costs(layers, cut), blocks)
    if len(cut) != blocks or min(cut) < 1 or sum(cut) != len(layers):
        raise ValueError(
            f"model.cut={list(cut)}: must be {blocks} numbers of at least 1 that sum to {len(layers)}, "
            "the number of layers of the model"
        )
    return list(cut)


def split_network(network: nn.Sequential, sizes: Sequence[int]) -> list[nn.Sequential]:
    """Blocks of ``sizes`` layers, bottom to top. They share the modules of ``network``, with their names in it."""
    return [network[start:end] for start, end in _spans(sizes)]


def block_shapes(layers: Sequence[LayerStats], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Shape of every block's output, without the batch dimension, for blocks of ``sizes`` layers."""
    return [layers[end - 1].shape for end in accumulate(sizes)]


def balance(costs: Sequence[float], blocks: int) -> list[int]:
    """`min_max_partition` for a block cost that is the sum of the costs of its layers."""
    ends = [0, *accumulate(costs)]
    return min_max_partition(lambda start, end: ends[end] - ends[start], len(costs), blocks)


def min_max_partition(cost: Callable[[int, int], float], layers: int, blocks: int) -> list[int]:
    """Number of layers of every block, at least 1 each, such that the largest block cost is the smallest possible.

    ``cost(start, end)`` is the cost of a block of the layers ``start .. end - 1``. Among such partitions the second
    largest block cost is the smallest possible, and so on. Ties go to fewer layers in the lowest block, then in the
    next.
    """
    assert 1 <= blocks <= layers
    # best[i] is the best partition of the lowest i layers: (its block costs in descending order, its layer counts).
    # This order is kept when the same block is put on top of two partitions, so every best one extends a best one.
    best = {i: ([cost(0, i)], [i]) for i in range(1, layers + 1)}
    for block in range(2, blocks + 1):
        best = {
            i: min((sorted([*best[j][0], cost(j, i)], reverse=True), [*best[j][1], i - j]) for j in range(block - 1, i))
            for i in range(block, layers + 1)
        }
    return best[layers][1]


def refine_partition(costs: Sequence[float], blocks: int, measure: Callable[[list[int], int], float]) -> list[int]:
    """Number of layers of every block by measured block costs, which exceed the costs of the layers alone.

    Every partition that is measured shows how much its blocks take beyond their layers. The next one assumes as much
    for unmeasured blocks that end at the same layer. The search ends when a partition repeats, and returns the best of
    the measured ones.

    Args:
        costs: Costs of the layers alone.
        blocks: Number of blocks N.
        measure: ``measure(counts, block)`` is the cost of block ``block`` (1..N) of a partition, in the same unit.
    """
    ends = [0, *accumulate(costs)]
    known: dict[tuple[int, int], float] = {}

    def layers(span: tuple[int, int]) -> float:
        return ends[span[1]] - ends[span[0]]

    def cost(start: int, end: int) -> float:
        if (start, end) in known:
            return known[start, end]
        extras = {span: measured - layers(span) for span, measured in known.items()}
        alike = [extra for span, extra in extras.items() if span[1] == end] or list(extras.values())
        return layers((start, end)) + (sum(alike) / len(alike) if alike else 0.0)

    tried: list[list[int]] = []
    for _ in range(_MAX_ROUNDS):
        counts = min_max_partition(cost, len(costs), blocks)
        if counts in tried:
            break
        tried.append(counts)
        for block, span in enumerate(_spans(counts), 1):
            if span not in known:
                known[span] = measure(counts, block)
    return min(tried, key=lambda counts: sorted((known[span] for span in _spans(counts)), reverse=True))


def layer_times(network: nn.Sequential, example: Tensor, inputs: bool = True) -> list[tuple[int, int]]:
    """Nanoseconds of a forward and of a backward pass of every layer, the fastest. ``network`` does not change.

    ``example`` is a batch of inputs. The backward time is near 0 if nothing has a gradient. Without ``inputs`` there
    are no gradients of the layers' inputs.
    """
    times = []
    activation = example
    with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):  # dropout draws from it
        for layer in network:
            timed = deepcopy(layer).train()
            source = activation.detach().requires_grad_(inputs and activation.is_floating_point())  # not of tokens
            activation = timed(source)
            forward, backward = best_of(partial(_pass, timed, source))
            times.append((forward, backward))
    return times


def best_of(timed: Callable[[], Sequence[int]]) -> list[int]:
    """Smallest value of every time, in nanoseconds, that ``timed`` returns.

    ``timed`` is called once to warm up, then until the number of calls or their total time reaches its limit.
    """
    timed()
    results: list[Sequence[int]] = []
    while len(results) < _MIN_PASSES or (len(results) < _MAX_PASSES and sum(map(sum, results)) < _TIME_LIMIT):
        results.append(timed())
    return [min(times) for times in zip(*results, strict=True)]


def synchronized_ns(device: torch.device) -> int:
    """Nanoseconds of a clock, read after ``device`` has finished all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter_ns()


def _pass(layer: nn.Module, source: Tensor) -> tuple[int, int]:
    start = synchronized_ns(source.device)
    output = layer(source)
    between = synchronized_ns(source.device)
    if output.requires_grad:
        output.backward(torch.ones_like(output))
    return between - start, synchronized_ns(source.device) - between


def _spans(counts: Sequence[int]) -> list[tuple[int, int]]:
    """First layer of every block, and the layer after its last."""
    return list(pairwise([0, *accumulate(counts)]))
