"""Blocks that sleep instead of computing: what is left to be measured is the schedule and the engine.

Emulated, and called so wherever it is reported. The same times are slept under every schedule: a network of sleeping
layers for pipelines of backprop, and a local rule that sleeps for the free engine. The messages are real.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from counterflow.algorithms import RuleSet
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.algorithms.rule import LocalRule, MessageSpec, Metrics, Payload, Target
from counterflow.config import OptimizerConfig

CLASSES = 10


@dataclass(frozen=True)
class Jitter:
    """In a ``share`` of all batches, one block drawn at random takes ``factor`` times as long."""

    share: float
    factor: float
    blocks: int
    seed: int = 0

    def __call__(self, block: int, n: int) -> float:
        """The factor of ``block`` (1..N) at batch ``n``: the same for everybody who asks."""
        draw = random.Random(1_000_003 * self.seed + n)
        slow = draw.random() < self.share and draw.randint(1, self.blocks) == block
        return self.factor if slow else 1.0


@dataclass(frozen=True)
class Sleep:
    """Seconds that every block takes for a whole update batch."""

    forward: float
    backward: float
    update: float
    batch: int
    """Samples of an update batch."""
    width: int
    """Numbers of an activation for each sample, 4 bytes each."""
    jitter: Jitter | None = None

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update

    @property
    def note(self) -> dict[str, float | str]:
        """What a result has to say about it."""
        return {
            "emulated": "every block sleeps, nothing is computed",
            "forward_ms": 1e3 * self.forward,
            "backward_ms": 1e3 * self.backward,
            "update_ms": 1e3 * self.update,
        }

    def factor(self, block: int, n: int) -> float:
        return self.jitter(block, n) if self.jitter is not None else 1.0


def pause(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


class _Pause(torch.autograd.Function):
    """The identity, whose gradient takes its time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pause(ctx.seconds)
        return gradients[0], None


class SleepingLayer(nn.Module):
    """Layer ``block`` of ``blocks``: takes a message ``[b, width]``, or samples at the bottom, and gives one, or
    logits at the top. Half of the backward pass is for the input and half for the weight, where both have a gradient.
    """

    def __init__(self, block: int, blocks: int, sleep: Sleep) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self._block = block
        self._out = sleep.width if block < blocks else CLASSES
        self._sleep = sleep
        self._samples = 0

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]
        x = x.flatten(1)[:, :1].expand(-1, self._out)
        if not self.training:
            return x + self.weight
        sleep = self._sleep
        share = size / sleep.batch * sleep.factor(self._block, self._samples // sleep.batch)
        self._samples += size
        pause(share * sleep.forward)
        for_input = share * sleep.backward / 2 if x.requires_grad else 0.0
        waits = _Pause.apply(x, for_input)
        learns = _Pause.apply(self.weight, share * sleep.backward - for_input)
        return torch.add(waits, learns)


def network(blocks: int, sleep: Mapping[str, Any]) -> nn.Sequential:
    """The factory of ``model=custom``; ``sleep`` are the fields of a `Sleep`."""
    of = Sleep(**{**sleep, "jitter": Jitter(**sleep["jitter"]) if sleep["jitter"] else None})
    return nn.Sequential(*(SleepingLayer(block, blocks, of) for block in range(1, blocks + 1)))


def sleep_in_updates(sleep: Sleep) -> None:
    """From now on every optimizer of this process takes its time."""
    register_optimizer_step_post_hook(lambda *_: pause(sleep.update))


class SleepingRule(LocalRule):
    """A block pair whose messages are those of block-local learning: activations up, a code book and labels down."""

    def __init__(self, block: int, blocks: int, sleep: Sleep, optimizer: OptimizerConfig, batches: int) -> None:
        super().__init__()
        self.layer = SleepingLayer(block, blocks, sleep)
        self._optimizer = BlockOptimizer(self.layer.parameters(), optimizer, batches)
        self._block = block
        self._sleep = sleep
        self._n = 0
        self._up = torch.zeros(sleep.batch, sleep.width)
        self._book = torch.zeros(CLASSES, CLASSES)

    def receive_target(self, n: int, message: Payload) -> Target:
        return message

    def make_target(self, n: int, target: Target) -> Payload:
        return self._book, target[-1]

    def forward_message(self, message: Payload) -> Payload:
        pause(self._sleep.factor(self._block, self._n) * self._sleep.forward)
        return (self._up,)

    def update(self, n: int, message: Payload, target: Target) -> Metrics:
        seconds = self._sleep.factor(self._block, n) * self._sleep.backward
        self._optimizer.backward_and_step(_Pause.apply(self.layer.weight, seconds), n)
        self._n = n + 1
        return {}

    def predict(self, message: Payload, target: Target) -> tuple[Payload, Tensor | None]:
        raise AssertionError("nothing is evaluated here")

    @property
    def inference_modules(self) -> Sequence[nn.Module]:
        return (self.layer,)


class SleepingColumn(RuleSet):
    def __init__(self, blocks: int, sleep: Sleep, optimizer: OptimizerConfig, batches: int) -> None:
        self._blocks = blocks
        self._sleep = sleep
        self._optimizer = optimizer
        self._batches = batches

    def rule(self, block: int) -> LocalRule:
        return SleepingRule(block, self._blocks, self._sleep, self._optimizer, self._batches)

    def activation(self, block: int, batch: int) -> MessageSpec:
        return (((self._sleep.batch, self._sleep.width), torch.float32),)

    def test_activation(self, block: int, batch: int) -> MessageSpec:
        return self.activation(block, batch)

    def target(self, block: int, n: int, batch: int) -> MessageSpec:
        return ((CLASSES, CLASSES), torch.float32), ((batch,), torch.int64)

    def summarize(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {}
