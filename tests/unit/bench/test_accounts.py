"""What autograd keeps, against sums by hand."""

import torch
import torch.nn.functional as F
from torch import nn

from counterflow.bench.accounts import Accounts


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


BY_HAND = (
    4 * 6 * 4  # the input, for the first weight's gradient
    + 4 * 5 * 4  # what the ReLU gave, which is the second layer's input as well
    + 4 * 3 * 4  # logarithms of softmax, for themselves and for the loss
    + 4 * 8  # labels
    + 4  # the weight of all samples
)
"""Of a batch of four; no parameter, and none of the two transposed weights."""


def loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs), torch.zeros(4, dtype=torch.int64))


def test_linear_layers_and_a_relu() -> None:
    model, inputs, accounts = network(), torch.randn(4, 6), Accounts()
    with accounts.saving():
        result = loss(model, inputs)
    assert accounts.saved.live == accounts.saved.peak == BY_HAND
    torch.autograd.backward(result)
    assert accounts.saved.live == 0
    assert accounts.saved.peak == BY_HAND


def test_an_input_with_a_gradient_costs_no_weight() -> None:
    """Its transposed weights are kept then, which are views of parameters."""
    model, inputs, accounts = network(), torch.randn(4, 6, requires_grad=True), Accounts()
    with accounts.saving():
        loss(model, inputs)
    assert accounts.saved.peak == BY_HAND


def test_gradients_are_the_same() -> None:
    model, inputs = network(), torch.randn(4, 6)
    loss(model, inputs).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    with Accounts().saving():
        loss(model, inputs).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)


def test_passes_before_their_gradients_add_up_and_one_after_the_other_do_not() -> None:
    model, together, apart = network(), Accounts(), Accounts()
    with together.saving():
        results = [loss(model, torch.randn(4, 6)) for _ in range(3)]
        for result in results:
            result.backward()
    with apart.saving():
        for _ in range(3):
            loss(model, torch.randn(4, 6)).backward()
    assert together.saved.peak == 3 * BY_HAND
    assert apart.saved.peak == BY_HAND
    assert together.saved.live == apart.saved.live == 0


def test_what_is_given_up_without_a_gradient_is_gone() -> None:
    accounts = Accounts()
    with accounts.saving():
        result = loss(network(), torch.randn(4, 6))
    assert accounts.saved.live
    del result
    assert accounts.saved.live == 0


def test_a_message_counts_as_long_as_anybody_has_it() -> None:
    accounts = Accounts()
    buffer = torch.zeros(4, 6)
    accounts.message(buffer)
    part = buffer[1:]
    del buffer
    assert accounts.messages.live == accounts.all.live == 96
    del part
    assert accounts.messages.live == accounts.all.live == 0
    assert accounts.messages.peak == 96


def test_a_message_that_autograd_keeps_counts_once_in_all() -> None:
    model, inputs, accounts = network(), torch.randn(4, 6), Accounts()
    accounts.message(inputs)
    with accounts.saving():
        result = loss(model, inputs)
    assert (accounts.saved.peak, accounts.messages.peak, accounts.all.peak) == (BY_HAND, 96, BY_HAND)
    torch.autograd.backward(result)
    del result
    assert (accounts.saved.live, accounts.messages.live, accounts.all.live) == (0, 96, 96)
