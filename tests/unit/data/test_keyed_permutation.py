"""Permutations without a table: every index once, another order for every seed, and no pattern."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterflow.data import batch_loader
from counterflow.data.batch_loader import EpochSampler
from counterflow.data.keyed_permutation import keyed_permutation


@given(st.integers(1, 3000), st.integers(0, 2**62))
def test_every_index_once(size: int, seed: int) -> None:
    assert keyed_permutation(torch.arange(size), size, seed).sort().values.tolist() == list(range(size))


@given(st.integers(2**20, 2**59), st.integers(0, 2**62), st.data())
def test_an_index_alone_is_where_it_is_among_others(size: int, seed: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 64))
    together = keyed_permutation(torch.arange(first, first + 64), size, seed)
    assert len(set(together.tolist())) == 64
    assert 0 <= int(together.min()) <= int(together.max()) < size
    assert keyed_permutation(torch.tensor([first + 7]), size, seed).tolist() == [int(together[7])]


def test_seeds_give_orders_that_look_random() -> None:
    """Half of all neighbours ascend, and one index in all stays, on average over 50 orders."""
    size, ascents, fixed = 5000, 0, 0
    orders = [keyed_permutation(torch.arange(size), size, seed) for seed in range(50)]
    for order in orders:
        ascents += int((order.diff() > 0).sum())
        fixed += int((order == torch.arange(size)).sum())
    assert ascents / (50 * (size - 1)) == pytest.approx(0.5, abs=0.01)
    assert 20 <= fixed <= 90
    agreement = sum(int((a == b).sum()) for a, b in itertools.pairwise(orders))
    assert 20 <= agreement <= 90


def test_a_sampler_of_very_many_samples_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = EpochSampler(size=10**12, batch_size=32, seed=1)
    assert len(set(sampler.indices(5).tolist()) & set(sampler.indices(6).tolist())) == 0
    assert not torch.equal(sampler.indices(0), sampler.indices(sampler.steps_per_epoch))
    monkeypatch.setattr(batch_loader, "_LARGEST_TABLE", 10)
    small = EpochSampler(size=100, batch_size=10, seed=3)
    for epoch in range(2):
        seen = torch.cat([small.indices(epoch * 10 + n) for n in range(10)])
        assert seen.sort().values.tolist() == list(range(100))
