"""Blocks that sleep instead of computing, so that the schedule and the engine alone are measured.

Every report calls them emulated. All schedules sleep the same times: pipelines of backprop in a network of sleeping
layers, the free engine in a local rule that sleeps. The messages are real.
"""

import random
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import (
    BlockContext,
    LocalAlgorithm,
    LocalRule,
    MessageSpec,
    Metrics,
    Payload,
    PerBlockRules,
    RuleContext,
    Target,
)

CLASSES = 10


@dataclass(frozen=True)
class Jitter:
    """In a ``share`` of all batches, one block drawn at random takes ``factor`` times as long."""

    share: float
    factor: float
    blocks: int

    def __call__(self, block: int, n: int) -> float:
        """The factor of ``block`` (1..N) at batch ``n``; every process computes the same."""
        generator = random.Random(n)
        return self.factor if generator.random() < self.share and generator.randint(1, self.blocks) == block else 1.0


@dataclass(frozen=True)
class Sleep:
    """Seconds that every block takes for one update batch."""

    forward: float
    backward: float
    update: float
    batch: int
    """Samples of an update batch."""
    width: int
    """Elements of an activation per sample, 4 bytes each."""
    jitter: Jitter | None = None
    replicas: int = 1
    """Copies of the pipeline; the seconds are for a share of the batch."""
    parameters: int = 1
    """Numbers that every block learns."""
    parts: int = 1
    """Parts in which a batch of a local rule travels; the seconds are for all of them."""

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update

    @property
    def settings(self) -> dict[str, float | str]:
        """Settings for `counterflow.bench.results.SuiteResult`."""
        return {
            "emulated": "every block sleeps, nothing is computed",
            "forward_ms": 1e3 * self.forward,
            "backward_ms": 1e3 * self.backward,
            "update_ms": 1e3 * self.update,
        }

    def factor(self, block: int, n: int) -> float:
        return self.jitter(block, n) if self.jitter is not None else 1.0


def pause(seconds: float) -> None:
    """Sleep, unless ``seconds`` is 0: even an empty sleep costs a system call."""
    if seconds > 0:
        time.sleep(seconds)


class _Pause(torch.autograd.Function):
    """Identity whose backward pass sleeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pause(ctx.seconds)
        return gradients[0], None


class SleepingLayer(nn.Module):
    """Layer ``block`` of ``blocks``: maps ``[b, width]``, or samples at the bottom, to ``[b, width]``, or to logits
    ``[b, CLASSES]`` at the top. Half of the backward time is for the input and half for the weight, if both need a
    gradient."""

    def __init__(self, block: int, blocks: int, sleep: Sleep) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sleep.parameters))
        self._block = block
        self._out = sleep.width if block < blocks else CLASSES
        self._sleep = sleep
        self._samples = 0

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        x = x.flatten(1)[:, :1].expand(-1, self._out)
        if not self.training:
            return x + self.weight[0]
        sleep = self._sleep
        share = size / sleep.batch * sleep.factor(self._block, self._samples // sleep.batch)
        self._samples += size
        pause(share * sleep.forward)
        backward = share * sleep.backward
        input_seconds = backward / 2 if x.requires_grad else 0.0
        return torch.add(_Pause.apply(x, input_seconds), _Pause.apply(self.weight[0], backward - input_seconds))


def sleeping_network(blocks: int, sleep: Sleep) -> nn.Sequential:
    """The factory of ``model=custom``."""
    return nn.Sequential(*(SleepingLayer(block, blocks, sleep) for block in range(1, blocks + 1)))


def sleep_in_updates(sleep: Sleep) -> None:
    """Make every optimizer step of this process sleep from now on."""
    register_optimizer_step_post_hook(lambda *_: pause(sleep.update))


class SleepingRule(LocalRule):
    """A block pair with the messages of block-local learning: activations up, a code book and labels down."""

    def __init__(self, block: BlockContext, sleep: Sleep) -> None:
        super().__init__()
        self.block = block.module
        self._optimizer = block.optimizer(self.block.parameters())
        self._number = block.number
        self._sleep = sleep
        self._n = 0
        self._up = torch.zeros(sleep.batch // sleep.replicas // sleep.parts, sleep.width)
        self._book = torch.zeros(CLASSES, CLASSES)

    def make_target(self, n: int, target: Target) -> Payload:
        return self._book, target[-1]

    def forward_message(self, message: Payload) -> Payload:
        pause(self._sleep.factor(self._number, self._n) * self._sleep.forward / self._sleep.parts)
        return (self._up,)

    def update(self, part: BatchPart, message: Payload, target: Target) -> Metrics:
        (weight,) = self.block.parameters()
        seconds = self._sleep.factor(self._number, part.n) * self._sleep.backward / part.count
        self._optimizer.backward_and_step(_Pause.apply(weight, seconds).sum(), part)
        self._n = part.n + part.is_last
        return {}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, None]:
        raise AssertionError("benchmarks do not evaluate")


class SleepingRules(PerBlockRules):
    """Sleeping rules of all blocks."""

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        return ((CLASSES, CLASSES), torch.float32), *super().target(block, n, batch)


@dataclass(kw_only=True)
class SleepingAlgorithm(LocalAlgorithm):
    """The algorithm of blocks that sleep under the free schedule."""

    name: str = "sleeping"
    sleep: Sleep

    def rule_set(self, context: RuleContext) -> SleepingRules:
        return SleepingRules(context, self.name, lambda block: SleepingRule(block, self.sleep))
