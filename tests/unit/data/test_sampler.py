import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.data.batch_loader import EpochSampler


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_an_epoch_has_every_index_at_most_once(data):
    size = data.draw(st.integers(1, 60))
    order = EpochSampler(size, data.draw(st.integers(1, size)), data.draw(st.integers(0, 2**40)))
    epoch = data.draw(st.integers(0, 3))
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert {order.epoch(n) for n in steps} == {epoch}
    indices = torch.cat([order.indices(n) for n in steps])
    assert indices.dtype == torch.int64
    assert len(indices) == size - size % order.batch_size
    assert len(indices.unique()) == len(indices)
    assert set(indices.tolist()) <= set(range(size))


def test_without_remainder_an_epoch_is_a_permutation():
    order = EpochSampler(60, 12, seed=3)
    assert sorted(torch.cat([order.indices(n) for n in range(5, 10)]).tolist()) == list(range(60))


def test_the_remainder_changes_from_epoch_to_epoch():
    order = EpochSampler(10, 4, seed=0)
    seen = {i for n in range(20) for i in order.indices(n).tolist()}
    assert seen == set(range(10))


def test_epochs_and_seeds_differ():
    first = EpochSampler(100, 100, seed=1)
    assert not torch.equal(first.indices(0), first.indices(1))
    assert not torch.equal(first.indices(0), EpochSampler(100, 100, seed=2).indices(0))
    assert not torch.equal(first.indices(0), torch.arange(100))


def test_pure_function_of_seed_and_batch():
    forward = EpochSampler(50, 7, seed=5)
    batches = [forward.indices(n) for n in range(40)]
    torch.manual_seed(123)
    for n in (39, 0, 13, 14, 13, 27, 6, 7):
        assert torch.equal(EpochSampler(50, 7, seed=5).indices(n), batches[n])


def test_a_changed_batch_does_not_change_the_order():
    order = EpochSampler(20, 5, seed=1)
    before = order.indices(0).tolist()
    order.indices(0).zero_()
    assert order.indices(0).tolist() == before


def test_batch_larger_than_the_data():
    with pytest.raises(ValueError, match=r"^train\.batch_size=11: must be at most 10, the size of the training data$"):
        EpochSampler(10, 11, seed=0)
    assert EpochSampler(10, 10, seed=0).steps_per_epoch == 1
