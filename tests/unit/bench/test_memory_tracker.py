"""Bytes that autograd saves, compared with sums by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from counterflow.bench.memory_tracker import LiveBytes, MemoryTracker


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


BY_HAND = (
    4 * 6 * 4  # the input, for the first weight's gradient
    + 4 * 5 * 4  # the output of the ReLU, which is the second layer's input as well
    + 4 * 3 * 4  # log-softmax, saved for itself and for the loss
    + 4 * 8  # labels
    + 4  # the total weight of the samples
)
"""Bytes of a batch of four, without parameters and the two transposed weights."""


def loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs), torch.zeros(4, dtype=torch.int64))


def test_linear_layers_and_a_relu() -> None:
    model, inputs, tracker = network(), torch.randn(4, 6), MemoryTracker()
    with tracker.count_saved():
        result = loss(model, inputs)
    assert tracker.saved.live == tracker.saved.peak == BY_HAND
    torch.autograd.backward(result)
    assert tracker.saved.live == 0
    assert tracker.saved.peak == BY_HAND


def test_an_input_with_a_gradient_costs_no_weight() -> None:
    """Autograd then saves transposed weights, which are views of parameters."""
    model, inputs, tracker = network(), torch.randn(4, 6, requires_grad=True), MemoryTracker()
    with tracker.count_saved():
        loss(model, inputs)
    assert tracker.saved.peak == BY_HAND


def test_gradients_are_the_same() -> None:
    model, inputs = network(), torch.randn(4, 6)
    loss(model, inputs).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    with MemoryTracker().count_saved():
        loss(model, inputs).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)


def test_forward_passes_before_any_backward_add_up() -> None:
    model, together, apart = network(), MemoryTracker(), MemoryTracker()
    with together.count_saved():
        results = [loss(model, torch.randn(4, 6)) for _ in range(3)]
        for result in results:
            result.backward()
    with apart.count_saved():
        for _ in range(3):
            loss(model, torch.randn(4, 6)).backward()
    assert together.saved.peak == 3 * BY_HAND
    assert apart.saved.peak == BY_HAND
    assert together.saved.live == apart.saved.live == 0


def test_a_loss_deleted_without_backward_frees_its_tensors() -> None:
    tracker = MemoryTracker()
    with tracker.count_saved():
        result = loss(network(), torch.randn(4, 6))
    assert tracker.saved.live
    del result
    assert tracker.saved.live == 0


def test_a_message_counts_as_long_as_it_is_referenced() -> None:
    tracker = MemoryTracker()
    buffer = torch.zeros(4, 6)
    tracker.count_message(buffer)
    part = buffer[1:]
    del buffer
    assert tracker.messages.live == tracker.all.live == 96
    del part
    assert tracker.messages.live == tracker.all.live == 0
    assert tracker.messages.peak == 96


def test_a_message_saved_by_autograd_counts_once_in_all() -> None:
    model, inputs, tracker = network(), torch.randn(4, 6), MemoryTracker()
    tracker.count_message(inputs)
    with tracker.count_saved():
        result = loss(model, inputs)
    assert (tracker.saved.peak, tracker.messages.peak, tracker.all.peak) == (BY_HAND, 96, BY_HAND)
    torch.autograd.backward(result)
    del result
    assert (tracker.saved.live, tracker.messages.live, tracker.all.live) == (0, 96, 96)


def test_a_storage_counts_once_and_as_a_base() -> None:
    live_bytes = LiveBytes()
    base = torch.zeros(100)
    first = live_bytes.hold(base[:10].untyped_storage())
    second = live_bytes.hold(base[50:].untyped_storage())
    assert live_bytes.live == live_bytes.peak == 400
    live_bytes.drop(first)
    assert live_bytes.live == 400
    live_bytes.drop(second)
    assert live_bytes.live == 0


def test_the_peak_is_that_of_the_sum() -> None:
    live_bytes = LiveBytes()
    a, b, c = torch.zeros(10), torch.zeros(20), torch.zeros(5)
    live_bytes.drop(live_bytes.hold(a.untyped_storage()))
    live_bytes.hold(b.untyped_storage())
    assert live_bytes.peak == 80  # never 120: a was dropped before b was held
    live_bytes.hold(c.untyped_storage())
    assert live_bytes.peak == 100


def test_a_reused_address_is_a_new_storage() -> None:
    """Keys are addresses, which are reused."""
    live_bytes = LiveBytes()
    for size in range(1, 50):
        tensor = torch.zeros(size)
        live_bytes.drop(live_bytes.hold(tensor.untyped_storage()))
        del tensor
    assert (live_bytes.live, live_bytes.peak) == (0, 4 * 49)
