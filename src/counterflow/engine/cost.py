"""What learning costs in arithmetic: FLOPs as torch counts them (matrix products and convolutions only)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from counterflow.algorithms.rule import LocalRule, Payload, RuleSet, Shape, Target, Task
from counterflow.engine.job import Job

SAMPLES = 2
"""Samples of a counted batch: batch norm cannot train on one value a channel."""


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample."""

    forward: float
    """Of the network, forward."""
    backprop: float
    """Of forward and backward passes of the network, as backprop trains it."""
    learning: float
    """Of training as it is done here, with all that only helps to learn."""

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backprop + other.backprop, self.learning + other.learning)


def backprop(block: nn.Module, example: Tensor, bottom: bool) -> Flops:
    """Of a block in an end-to-end network. ``example`` is a batch of `SAMPLES` inputs; at the ``bottom`` of the network
    they need no gradient."""
    block = copy.deepcopy(block).train()
    source = example.detach().requires_grad_(not bottom and example.is_floating_point())
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        output = block(source)
        forward = counter.get_total_flops()
        if output.requires_grad:
            torch.autograd.backward(output.sum())
    total = counter.get_total_flops()
    return Flops(forward / SAMPLES, total / SAMPLES, total / SAMPLES)


def inputs(job: Job) -> Tensor:
    """What enters the bottom block: `SAMPLES` times the same sample, as the first batch may be smaller."""
    return _repeated(job, SAMPLES)


def local(column: RuleSet, block: int, rule: LocalRule, job: Job) -> Flops:
    """Of ``rule``, the block pair ``block`` of ``column``."""
    few, more = (_learning(column, block, rule, job, samples) for samples in (SAMPLES, 2 * SAMPLES))
    each = (more - few) / SAMPLES
    once = few - SAMPLES * each  # what a batch costs whatever its size: code books
    plain = backprop(rule.inference_modules[0], _message(column, block, job, SAMPLES)[0], bottom=block == 1)
    return Flops(plain.forward, plain.backprop, each + once / job.config.train.batch_size)


def _learning(column: RuleSet, block: int, rule: LocalRule, job: Job, samples: int) -> float:
    """FLOPs of `LocalRule.forward_message` and `LocalRule.update` on a batch of ``samples``."""
    rule = copy.deepcopy(rule).train()
    message = _message(column, block, job, samples)
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        target: Target = ()
        if job.plan.targets_down:
            *above, _ = column.target(block, 0, samples)
            target = rule.receive_target(0, (*made_up(above), _labels(job.task, samples)))
        rule.forward_message(message)
        rule.update(0, message, target)
    return float(counter.get_total_flops())


def _message(column: RuleSet, block: int, job: Job, samples: int) -> Payload:
    if block > 1:
        return made_up(column.activation(block - 1, samples))
    return _repeated(job, samples), _labels(job.task, samples)


def _repeated(job: Job, samples: int) -> Tensor:
    first = job.example[:1]
    return first.repeat(samples, *[1] * (first.ndim - 1))


def _labels(task: Task, samples: int) -> Tensor:
    return torch.zeros(samples, *task.label_shape, dtype=torch.int64)


def made_up(specs: Iterable[tuple[Shape, torch.dtype]]) -> Payload:
    """A message of ``specs``, with any content."""
    return tuple(
        torch.randn(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype) for shape, dtype in specs
    )
