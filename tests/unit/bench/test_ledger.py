"""Storages are counted once, for as long as somebody holds them."""

import torch

from counterflow.bench.ledger import CheckpointCommitter


def test_a_storage_counts_once_and_as_a_whole() -> None:
    ledger = CheckpointCommitter()
    whole = torch.zeros(100)
    first = ledger.hold(whole[:10].untyped_storage())
    second = ledger.hold(whole[50:].untyped_storage())
    assert ledger.live == ledger.peak == 400
    ledger.drop(first)
    assert ledger.live == 400
    ledger.drop(second)
    assert ledger.live == 0


def test_the_peak_is_that_of_the_sum() -> None:
    ledger = CheckpointCommitter()
    a, b, c = torch.zeros(10), torch.zeros(20), torch.zeros(5)
    ledger.drop(ledger.hold(a.untyped_storage()))
    ledger.hold(b.untyped_storage())
    assert ledger.peak == 80  # never 120: a was gone before b came
    ledger.hold(c.untyped_storage())
    assert ledger.peak == 100


def test_a_storage_where_another_one_was() -> None:
    """Keys are addresses, which are used again."""
    ledger = CheckpointCommitter()
    for size in range(1, 50):
        tensor = torch.zeros(size)
        ledger.drop(ledger.hold(tensor.untyped_storage()))
        del tensor
    assert (ledger.live, ledger.peak) == (0, 4 * 49)
