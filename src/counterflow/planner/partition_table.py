"""Table of the best partitions of a network into blocks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EQUAL = 1e-9
"""Relative difference up to which costs of a partition are equal: they are sums in different orders."""


class PartitionTable:
    """Best partitions into 1 to ``max_blocks`` blocks; a table of 1,000 layers takes seconds, each partition less.

    Args:
        cost: Cost of a block of the layers ``start .. end - 1``, from ``start`` and ``end``; infinite if there is no
            such block.
        layers: Number of layers.
        max_blocks: Largest number of blocks.
    """

    def __init__(self, cost: Callable[[int, int], float], layers: int, max_blocks: int) -> None:
        assert 1 <= max_blocks <= layers
        self._costs: NDArray[np.float64] = np.full((layers, layers + 1), np.inf)
        for start in range(layers):
            self._costs[start, start + 1 :] = [cost(start, end) for end in range(start + 1, layers + 1)]
        best = self._costs[0]
        self._slowest = [best[layers]]
        for _ in range(1, max_blocks):
            best = np.minimum.reduce(np.maximum(best[:layers, None], self._costs))
            self._slowest.append(best[layers])

    def slowest(self, blocks: int) -> float:
        """Cost of the most expensive block of the best partition; infinite if there is no partition."""
        return float(self._slowest[blocks - 1])

    def counts(self, blocks: int) -> list[int]:
        """Layers of every block of the best partition.

        Among the partitions whose most expensive block is as cheap as possible, it is the one with the smallest sum of
        squares.
        """
        slowest, layers = self.slowest(blocks), len(self._costs)
        assert slowest < np.inf, "a partition that exists"
        squares = np.where(self._costs <= slowest * (1 + _EQUAL), np.square(self._costs), np.inf)
        best: NDArray[np.float64] = squares[0]
        starts: list[NDArray[Any]] = []
        for _ in range(1, blocks):
            sums = best[:layers, None] + squares
            starts.append(sums.argmin(0))
            best = np.minimum.reduce(sums)
        ends = [layers]
        for start in reversed(starts):
            ends.append(int(start[ends[-1]]))
        return [end - start for start, end in pairwise([0, *reversed(ends)])]
