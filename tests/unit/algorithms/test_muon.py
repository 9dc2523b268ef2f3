import pytest
import torch
from torch import nn

from counterflow.algorithms.muon import hidden_weights, orthogonalized
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.config import AdamW, Muon


@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (20, 4), (1, 5), (5, 1)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + torch.eye(*shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonalized(matrix, 5) @ v.T
    torch.testing.assert_close(values, torch.diag(values.diag()), atol=1e-4, rtol=0)
    assert values.diag().min() > 0.6
    assert values.diag().max() < 1.3


def test_nothing_becomes_nothing() -> None:
    assert orthogonalized(torch.zeros(3, 4), 5).eq(0).all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_are_torchs_up_to_its_bfloat16(nesterov: bool) -> None:
    """`torch.optim.Muon` on matrices, whose Newton-Schulz rounds to eight bits."""
    config = Muon(lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.2, schedule="constant")
    for shape in ((6, 4), (4, 6)):
        ours = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        theirs = nn.Parameter(ours.detach().clone())
        optimizer = BlockOptimizer([ours], config, 10, hidden=[ours])
        torchs = torch.optim.Muon([theirs], lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.2)
        for n in range(3):
            ours.grad = torch.randn(shape, generator=torch.Generator().manual_seed(n))
            theirs.grad = ours.grad.clone()
            optimizer.step(n)
            torchs.step()
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_convolution_is_a_matrix_of_output_channels_in_any_layout(autocast: bool) -> None:
    config, shape = Muon(lr=0.1, schedule="constant"), (5, 3, 3, 3)
    start, results = torch.randn(shape), []
    gradients = [torch.randn(shape) for _ in range(3)]
    for layout in (torch.contiguous_format, torch.channels_last, None):
        value = start.flatten(1) if layout is None else start.clone(memory_format=layout)
        weight = nn.Parameter(value)
        optimizer = BlockOptimizer([weight], config, 10, hidden=[weight])
        for n, gradient in enumerate(gradients):
            weight.grad = gradient.flatten(1) if layout is None else gradient.clone(memory_format=layout)
            with torch.autocast("cpu", enabled=autocast):
                optimizer.step(n)
        results.append(weight.detach().reshape(shape))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.convolution = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.middle = nn.Linear(4, 5)
        self.tied = nn.Linear(6, 7)
        self.last = nn.Linear(5, 2)
        self.tied.weight = self.embedding.weight


def test_hidden_weights_are_those_of_layers_but_the_last_one() -> None:
    block = Small()
    hidden = [block.convolution.weight, block.middle.weight]
    for is_top, expected in ((True, hidden), (False, [*hidden, block.last.weight])):
        assert [id(p) for p in hidden_weights(block, is_top)] == [id(p) for p in expected]


def test_all_else_takes_adamw() -> None:
    block = Small()
    config = Muon(adamw_lr=0.3, betas=[0.8, 0.9], weight_decay=0.1, schedule="constant")
    others = [block.embedding.weight, block.norm.weight, block.middle.bias, block.last.weight]
    expected = [nn.Parameter(p.detach().clone()) for p in others]
    optimizer = BlockOptimizer(block.parameters(), config, 10, hidden=hidden_weights(block, is_top=True))
    adamw = BlockOptimizer(expected, AdamW(lr=0.3, betas=[0.8, 0.9], weight_decay=0.1, schedule="constant"), 10)
    for n in range(2):
        for ours, theirs in zip(others, expected, strict=True):
            ours.grad = torch.full_like(ours, n - 0.3)
            theirs.grad = torch.full_like(theirs, n - 0.3)
        optimizer.step(n)
        adamw.step(n)
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))
