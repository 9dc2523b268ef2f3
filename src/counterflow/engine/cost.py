"""FLOPs of learning, as torch counts them: matrix products and convolutions only."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterflow.algorithms.optimizer import BatchPart, BlockOptimizer
from counterflow.algorithms.rule import LocalRule, Payload, RuleSet, Shape, Target, Task
from counterflow.engine.job import Job
from counterflow.models.partition import flop_counter

SAMPLES = 2
"""Samples of a counted batch: batch norm cannot train on one value a channel."""


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample."""

    forward: float
    """Forward pass of the network."""
    backprop: float
    """Forward and backward pass of the network under backprop."""
    learning: float
    """Training under the rule in use, with all modules that only help to learn."""

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backprop + other.backprop, self.learning + other.learning)


@dataclass(frozen=True)
class ExitFlops:
    """FLOPs per sample by which a block adds to a prediction."""

    block: float
    readout: float | None = None
    """None where the block has no prediction of its own."""
    decoder: float = 0.0


def backprop(block: nn.Module, example: Tensor, bottom: bool) -> Flops:
    """FLOPs of a block in an end-to-end network.

    ``example`` is a batch of `SAMPLES` inputs; at the ``bottom`` of the network they need no gradient.
    """
    block = copy.deepcopy(block).train()
    source = example.detach().requires_grad_(not bottom and example.is_floating_point())
    with torch.random.fork_rng(devices=[]), flop_counter() as counter:
        output = block(source)
        forward = counter.get_total_flops()
        if output.requires_grad:
            torch.autograd.backward(output.sum())
    total = counter.get_total_flops()
    return Flops(forward / SAMPLES, total / SAMPLES, total / SAMPLES)


def end_to_end(job: Job, block: int) -> Flops:
    """FLOPs of ``block`` under an end-to-end reference."""
    example = torch.randn(SAMPLES, *job.shapes[block - 2]) if block > 1 else _inputs(job, SAMPLES)
    return backprop(job.blocks[block - 1], example, bottom=block == 1)


def local(rules: RuleSet, block: int, rule: LocalRule, job: Job) -> Flops:
    """FLOPs of ``rule``, the block pair ``block`` of ``rules``."""
    few, more = (_learning(rules, block, rule, job, samples) for samples in (SAMPLES, 2 * SAMPLES))
    each = (more - few) / SAMPLES
    once = few - SAMPLES * each  # costs of a part of any size: code books
    plain = backprop(rule.inference_modules[0], _message(rules, block, job, SAMPLES)[0], bottom=block == 1)
    return Flops(plain.forward, plain.backprop, each + once * job.plan.parts / job.shard_size)


def prediction(rules: RuleSet, block: int, rule: LocalRule, job: Job) -> ExitFlops:
    """FLOPs of predicting by ``rule``, the block pair ``block`` of ``rules``."""
    modules = [rule.inference_modules[0], rule.readout_module(), rule.decoder_module()]
    values, counts = _message(rules, block, job, SAMPLES)[0], []
    for module in modules:
        with flop_counter() as counter:
            if module is not None:
                values = copy.deepcopy(module).eval()(values)
        counts.append(counter.get_total_flops() / SAMPLES)
    has_exit = modules[1] is not None or block == job.topology.blocks
    return ExitFlops(counts[0], counts[1] if has_exit else None, counts[2])


def _learning(rules: RuleSet, block: int, rule: LocalRule, job: Job, samples: int) -> float:
    """FLOPs of `LocalRule.forward_message` and `LocalRule.update` on a batch of ``samples``."""
    rule = copy.deepcopy(rule).train()
    for module in rule.modules():
        if isinstance(module, BlockOptimizer):  # their state would take more memory than training does
            module.keep_matrix_products()
    message = _message(rules, block, job, samples)
    with torch.random.fork_rng(devices=[]), flop_counter() as counter:
        target: Target = ()
        if job.plan.targets_down:
            *above, _ = rules.target(block, 0, samples)
            target = rule.receive_target(0, (*made_up(above), _labels(job.task, samples)))
        rule.forward_message(message)
        rule.update(BatchPart(0), message, target)
    return float(counter.get_total_flops())


def _message(rules: RuleSet, block: int, job: Job, samples: int) -> Payload:
    if block > 1:
        return made_up(rules.activation(block - 1, samples))
    return _inputs(job, samples), _labels(job.task, samples)


def _inputs(job: Job, samples: int) -> Tensor:
    """Input of the bottom block: ``samples`` times the same sample, as the first batch may be smaller."""
    first = job.example[:1]
    return first.repeat(samples, *[1] * (first.ndim - 1))


def _labels(task: Task, samples: int) -> Tensor:
    return torch.zeros(samples, *task.label_shape, dtype=torch.int64)


def made_up(specs: Iterable[tuple[Shape, torch.dtype]]) -> Payload:
    """A message of ``specs``, with any content."""
    return tuple(
        torch.randn(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=torch.int64)
        for shape, dtype in specs
    )
