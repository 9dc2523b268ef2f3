"""Cutting a network into contiguous blocks of layers."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate, pairwise
from time import perf_counter_ns

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_PASSES = 5
"""Timed passes of a layer, at most; the fastest of them is its cost, as whatever else a machine does only adds."""
_FEWEST = 2
"""Timed passes, at least."""
_PATIENCE = 1_000_000_000
"""Nanoseconds of timed passes after which no more of one kind begin."""
_ROUNDS = 8
"""Cuts that are tried, at most, before the best of them is taken."""


def partition(network: nn.Sequential, blocks: int, cut: str | Sequence[int], example: Tensor) -> list[nn.Sequential]:
    """Blocks, bottom to top, that together are ``network``: they share its modules and keep their names in it.

    Arguments and errors are those of ``layer_counts``.
    """
    return [network[start:end] for start, end in _spans(layer_counts(network, blocks, cut, example))]


def layer_counts(network: nn.Sequential, blocks: int, cut: str | Sequence[int], example: Tensor) -> list[int]:
    """Number of layers of every block: ``cut`` itself if it is a list, else balanced by the costs that it names.

    ``example`` is a batch of inputs. With ``cut="profile"`` the result depends on the clock: ranks and resumed runs
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
    """`min_max_partition` where the cost of a block is the sum of those of its layers."""
    ends = [0, *accumulate(costs)]
    return min_max_partition(lambda start, end: ends[end] - ends[start], len(costs), blocks)


def min_max_partition(cost: Callable[[int, int], float], layers: int, blocks: int) -> list[int]:
    """Number of layers of every block, at least 1 each, such that the largest block cost is the smallest possible.

    ``cost(start, end)`` is that of a block of the layers ``start .. end - 1``. Among such cuts the second largest block
    cost is the smallest possible, and so on; what still ties goes to the cut with fewer layers in the lowest block,
    then in the next.
    """
    assert 1 <= blocks <= layers
    # best[i] is the best cut of the lowest i layers: (its block costs in descending order, its layer counts). In this
    # order better stays better when the same block is put on top of both, so that every best cut extends a best cut.
    best = {i: ([cost(0, i)], [i]) for i in range(1, layers + 1)}
    for block in range(2, blocks + 1):
        best = {
            i: min((sorted([*best[j][0], cost(j, i)], reverse=True), [*best[j][1], i - j]) for j in range(block - 1, i))
            for i in range(block, layers + 1)
        }
    return best[layers][1]


def refine_partition(costs: Sequence[float], blocks: int, measure: Callable[[list[int], int], float]) -> list[int]:
    """Number of layers of every block by what blocks take at work, which is more than their layers do.

    ``costs`` are those of the layers alone; ``measure(counts, block)`` is what block ``block`` (1..N) of a cut takes,
    in the same unit. Every cut that is tried says how much a block takes beyond its layers, by where it ends: the next
    one counts on that. It ends when a cut comes again, and the best of those that were measured is taken.
    """
    ends = [0, *accumulate(costs)]
    known: dict[tuple[int, int], float] = {}

    def layers(span: tuple[int, int]) -> float:
        return ends[span[1]] - ends[span[0]]

    def cost(start: int, end: int) -> float:
        if (start, end) in known:
            return known[start, end]
        extras = {span: taken - layers(span) for span, taken in known.items()}
        alike = [extra for span, extra in extras.items() if span[1] == end] or list(extras.values())
        return layers((start, end)) + (sum(alike) / len(alike) if alike else 0.0)

    tried: list[list[int]] = []
    for _ in range(_ROUNDS):
        counts = min_max_partition(cost, len(costs), blocks)
        if counts in tried:
            break
        tried.append(counts)
        for block, span in enumerate(_spans(counts), 1):
            if span not in known:
                known[span] = measure(counts, block)
    return min(tried, key=lambda counts: sorted((known[span] for span in _spans(counts)), reverse=True))


def layer_costs(network: nn.Sequential, example: Tensor, cut: str) -> list[int]:
    """Cost of every layer, at least 1, so that a block of free layers still counts. Leaves ``network`` as it was.

    ``parameters``: their number. ``flops``: of the forward pass of one sample, as torch counts them (matrix products
    and convolutions only). ``profile``: nanoseconds of a forward and backward pass of the batch ``example``.
    """
    match cut:
        case "parameters":
            costs = [sum(p.numel() for p in layer.parameters()) for layer in network]
        case "flops":
            costs = _flops(network, example[:1])
        case "profile":
            costs = [forward + backward for forward, backward in layer_times(network, example)]
        case _:
            raise ValueError(f"model.cut={cut}: allowed are flops, parameters, profile, or a list of layer counts")
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


def layer_times(network: nn.Sequential, example: Tensor, inputs: bool = True) -> list[tuple[int, int]]:
    """Nanoseconds of a forward and of a backward pass of every layer, the fastest. Leaves ``network`` as it was.

    ``example`` is a batch of inputs. There is no backward pass where nothing has a gradient, and without ``inputs``
    none for what enters a layer.
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
    """Of every figure that ``timed`` returns, nanoseconds of its parts: it is called once to warm up, and then until
    it has been timed often enough, or long enough."""
    timed()
    found: list[Sequence[int]] = []
    while len(found) < _FEWEST or (len(found) < _PASSES and sum(map(sum, found)) < _PATIENCE):
        found.append(timed())
    return [min(figures) for figures in zip(*found, strict=True)]


def synchronized_ns(device: torch.device) -> int:
    """Nanoseconds of a clock, once ``device`` has done all that it was given to do."""
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
    """The first layer of every block, and the one after its last."""
    return list(pairwise([0, *accumulate(counts)]))


def _flops(network: nn.Sequential, activation: Tensor) -> list[int]:
    counts = []
    for layer in network:
        # With gradients: without, torch evaluates attention by a fused operation that it does not count.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            activation = deepcopy(layer).eval()(activation).detach()
        counts.append(counter.get_total_flops())
    return counts
