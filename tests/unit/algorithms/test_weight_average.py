import pytest
import torch
from torch import nn

from counterflow.algorithms.weight_average import WeightAverage


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train(owner: nn.Module, average: WeightAverage, steps: int) -> list[list[torch.Tensor]]:
    """Fast weights and running statistics after every step."""
    optimizer, seen = torch.optim.SGD(owner.parameters(), lr=0.3), []
    for n in range(steps):
        owner(torch.randn(8, 3, generator=torch.Generator().manual_seed(n))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(n)
        seen.append([t.detach().clone() for t in owner.state_dict().values() if t.is_floating_point()])
    return seen


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_averages_by_hand(decay: float) -> None:
    owner = network()
    average = WeightAverage(owner, owner, decay)
    expected = [t.detach().clone() for t in owner.state_dict().values() if t.is_floating_point()]
    for n, values in enumerate(train(owner, average, 12)):
        d = min(decay, (n + 1) / (n + 10))
        expected = [d * e + (1 - d) * value for e, value in zip(expected, values, strict=True)]
    fast = [t.clone() for t in owner.state_dict().values()]
    with average.applied():
        found = [t for t in owner.state_dict().values() if t.is_floating_point()]
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(owner.state_dict().values(), fast, strict=True))


def test_a_shared_parameter_is_averaged_once() -> None:
    owner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    owner[1].weight = owner[0].weight
    average = WeightAverage(owner, owner, 0.9)
    assert len(list(average.buffers())) == 3
    before = owner[0].weight.detach().clone()
    with torch.no_grad():
        owner[0].weight.add_(1)
    with average.applied():
        assert torch.equal(owner[1].weight, before)
    assert torch.equal(owner[1].weight, before + 1)


def test_only_the_block_brings_buffers_and_the_owner_all_weights() -> None:
    owner = nn.ModuleDict({"block": network(), "head": network()})
    names = dict(WeightAverage(owner, owner["block"], 0.5).named_buffers())
    assert {name for name in names if "running" in name} == {"block/1/running_mean", "block/1/running_var"}
    assert len(names) == 2 * 4 + 2
