"""Small systems for the tests of block-local learning, and the definitions that they are held against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal

from counterflow.algorithms.bll import BLL, BLLRules
from counterflow.algorithms.rule import MessageSpec, Payload, RuleContext, Shape, Task
from counterflow.config import SGD, FeedbackConfig, HeadConfig, LatentConfig, OptimizerConfig

CLASSES = 5
CATEGORIES = 2
BATCHES = 10
FAMILIES = ("gaussian", "bernoulli", "categorical")


def convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    # Without a bias: batch norm cancels it, so that its gradient is rounding, which AdamW would make a step of.
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh())


@dataclass(frozen=True)
class Case:
    task: Task
    blocks: Callable[[], list[nn.Module]]
    shapes: list[Shape]
    """Of the blocks' outputs for one sample."""
    dims: list[int]
    """Of the blocks' latents."""


CASES = {
    "vectors": Case(
        Task((3,), CLASSES),
        lambda: [linear(3, 6), linear(6, 4), linear(4, 6), nn.Linear(6, CLASSES)],
        [(6,), (4,), (6,), (CLASSES,)],
        [6, 4, 6, CLASSES],
    ),
    "maps": Case(
        Task((2, 8, 8), CLASSES),
        lambda: [convolution(2, 3, 1), convolution(3, 4, 2), nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))],
        [(3, 8, 8), (4, 4, 4), (CLASSES,)],
        [12, 16, CLASSES],
    ),
    "maps, convolutional heads": Case(
        Task((2, 8, 8), CLASSES),
        lambda: [convolution(2, 3, 1), convolution(3, 4, 1), nn.Sequential(nn.Flatten(), nn.Linear(256, CLASSES))],
        [(3, 8, 8), (4, 8, 8), (CLASSES,)],
        [10, 10, CLASSES],
    ),
    "sequences": Case(
        Task((7, 3), CLASSES, label_shape=(7,)),
        lambda: [linear(3, 6), linear(6, 4), nn.Linear(4, CLASSES)],
        [(7, 6), (7, 4), (7, CLASSES)],
        [6, 4, CLASSES],
    ),
}


def rule_context(name: str, optimizer: OptimizerConfig | None = None, seed: int = 1) -> RuleContext:
    """The network of a case, its blocks made anew with the same weights."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        blocks = case.blocks()
    return RuleContext(blocks, case.shapes, case.task, optimizer or SGD(), BATCHES, seed)


def head_config(name: str) -> HeadConfig:
    """The heads of a case: one convolution where its name says so, else pooling alone."""
    convolutional = name == "maps, convolutional heads"
    return HeadConfig(convolutions=int(convolutional), width=10, dim=10 if convolutional else 16)


def system(
    name: str,
    *,
    family: str = "gaussian",
    optimizer: OptimizerConfig | None = None,
    feedback: FeedbackConfig | None = None,
    seed: int = 1,
) -> BLLRules:
    """The rules of BLL for a case, its blocks made anew with the same weights."""
    latent = LatentConfig(family=family, categories=CATEGORIES)
    bll = BLL(head=head_config(name), latent=latent, feedback=feedback or FeedbackConfig(hidden=9))
    rules = bll.rule_set(rule_context(name, optimizer, seed))
    assert isinstance(rules, BLLRules)
    return rules


def inputs(name: str, block: int, batch: int = 4) -> Payload:
    """A message for ``block`` from below, float64."""
    case = CASES[name]
    if block == 1:
        return (torch.randn(batch, *case.task.input_shape, dtype=torch.float64),)
    a = torch.randn(batch, *case.shapes[block - 2], dtype=torch.float64)
    u = torch.randn(batch, *case.task.label_shape, case.dims[block - 2], dtype=torch.float64)
    return a, u


def labels(name: str, batch: int = 4) -> Tensor:
    return torch.randint(CLASSES, (batch, *CASES[name].task.label_shape))


def targets(name: str, block: int, batch: int = 4) -> Payload:
    """A message for ``block`` from above, float64; for the top, labels alone."""
    y = labels(name, batch)
    if block == len(CASES[name].dims):
        return (y,)
    return torch.randn(CLASSES, CASES[name].dims[block - 1], dtype=torch.float64), y


def specs(message: Payload) -> MessageSpec:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in message)


def travelling(message: Payload) -> MessageSpec:
    """`specs` of a message whose integers are labels of `CLASSES` classes."""
    return specs(tuple(tensor if tensor.is_floating_point() else tensor.to(torch.uint8) for tensor in message))


def distribution(family: str, natural: Tensor, categories: int = CATEGORIES) -> Distribution:
    """The member of a family over a vector, from its natural parameters ``[..., d]``."""
    match family:
        case "gaussian":
            return Independent(Normal(natural, torch.ones_like(natural)), 1)
        case "bernoulli":
            return Independent(Bernoulli(logits=natural), 1)
        case _:
            return Independent(Categorical(logits=natural.unflatten(-1, (-1, categories))), 1)


def mean(family: str, natural: Tensor, categories: int = CATEGORIES) -> Tensor:
    """The expected statistics ``[..., d]``; those of a categorical variable are its indicators."""
    member = distribution(family, natural, categories)
    if family != "categorical":
        return member.mean
    assert isinstance(member, Independent)
    return member.base_dist.probs.flatten(-2)


def log_q(u: Tensor, codes: Tensor, y: Tensor) -> Tensor:
    """``log q(y | u)``, the definition: ``q(c | u) = exp(b(c) . u) / sum_c' exp(b(c') . u)``."""
    scores = torch.einsum("...d,cd->...c", u, codes)
    return scores.gather(-1, y[..., None]).squeeze(-1) - scores.exp().sum(-1).log()


def rho(u: Tensor, codes: Tensor, y: Tensor) -> Tensor:
    """Natural parameters of the posterior: those of alpha, plus the gradient of the log likelihood."""
    u = u.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(log_q(u, codes, y).sum(), u)
    return (u + gradient).detach()
