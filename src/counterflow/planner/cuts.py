"""The most even cuts of many layers into every number of blocks at once."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Costs = NDArray[np.float64]

_EVEN = 1e-9
"""Costs that differ by less, relatively, are the same: they are sums in different orders."""


class Cuts:
    """Cuts by ``cost(start, end)`` of a block of the layers ``start .. end - 1``, infinite if there is
    no such block. What takes seconds for 1,000 layers is done once."""

    def __init__(self, cost: Callable[[int, int], float], layers: int, most: int) -> None:
        """``most`` blocks, at most."""
        assert 1 <= most <= layers
        self._layers = layers
        self._costs: _Costs = np.full((layers, layers + 1), np.inf)
        for start in range(layers):
            for end in range(start + 1, layers + 1):
                self._costs[start, end] = cost(start, end)
        best = self._costs[0]
        self._slowest = [best[layers]]
        for _ in range(1, most):
            best = np.minimum.reduce(np.maximum(best[:layers, None], self._costs))
            self._slowest.append(best[layers])

    def slowest(self, blocks: int) -> float:
        """The cost of the dearest block of the best cut; infinite if there is no cut."""
        return float(self._slowest[blocks - 1])

    def counts(self, blocks: int) -> list[int]:
        """Layers of every block of the best cut: among those whose dearest block is as cheap as possible, the one with
        the smallest sum of squares."""
        slowest = self.slowest(blocks)
        assert slowest < np.inf, "a cut that there is"
        squares = np.where(self._costs <= slowest * (1 + _EVEN), np.square(self._costs), np.inf)
        best: _Costs = squares[0]
        starts: list[NDArray[Any]] = []
        for _ in range(1, blocks):
            sums = best[: self._layers, None] + squares
            starts.append(sums.argmin(0))
            best = np.minimum.reduce(sums)
        ends = [self._layers]
        for start in reversed(starts):
            ends.append(int(start[ends[-1]]))
        return [end - start for start, end in pairwise([0, *reversed(ends)])]
