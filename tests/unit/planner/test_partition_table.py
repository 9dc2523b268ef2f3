"""Every number of blocks at once, against all cuts there are."""

import time
from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.planner.partition_table import PartitionTable


def every_cut(layers: int, blocks: int) -> list[list[int]]:
    return [[b - a for a, b in pairwise([0, *ends, layers])] for ends in combinations(range(1, layers), blocks - 1)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.data())
def test_the_slowest_block_is_as_fast_as_in_any_cut(costs: list[int], data: st.DataObject) -> None:
    layers = len(costs)
    extra = data.draw(st.lists(st.integers(0, 5), min_size=layers, max_size=layers))
    ends = [0, *accumulate(costs)]

    def cost(start: int, end: int) -> float:
        return float(ends[end] - ends[start] + extra[end - 1])

    def taken(counts: list[int]) -> list[float]:
        return [cost(start, end) for start, end in pairwise([0, *accumulate(counts)])]

    table = PartitionTable(cost, layers, layers)
    for blocks in range(1, layers + 1):
        best = min(
            every_cut(layers, blocks), key=lambda counts: (max(taken(counts)), sum(c * c for c in taken(counts)))
        )
        found = table.counts(blocks)
        assert (len(found), sum(found)) == (blocks, layers)
        assert table.slowest(blocks) == max(taken(found)) == max(taken(best))
        assert sum(c * c for c in taken(found)) == sum(c * c for c in taken(best))


def test_blocks_that_there_cannot_be_are_not_made() -> None:
    table = PartitionTable(lambda start, end: float("inf") if end - start > 2 else 1.0, 5, 5)
    assert table.slowest(2) == float("inf")
    assert max(table.counts(3)) <= 2


@pytest.mark.slow
def test_a_thousand_layers_are_cut_in_seconds() -> None:
    start = time.monotonic()
    table = PartitionTable(lambda start, end: float(end - start), 1000, 1000)
    assert table.counts(500) == [2] * 500
    assert table.counts(1000) == [1] * 1000
    assert time.monotonic() - start < 60
