"""Times of block pairs, measured as they would run, and the cut that balances them."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from counterflow.algorithms import LocalAlgorithm, RuleSet
from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import LocalRule, MessageSpec, Payload
from counterflow.engine.cost import made_up
from counterflow.engine.job import Job
from counterflow.message import MessageKind
from counterflow.models.partition import (
    balance,
    best_of,
    layer_times,
    refine_partition,
    synchronized_ns,
)


@dataclass(frozen=True)
class BlockTime:
    """Nanoseconds of a block pair for one training batch, of several passes the fastest."""

    target: int
    """To read a target and make the one for the block below."""
    forward: int
    """Until the message for the block above is there: latent head included."""
    learn: int
    """Losses, backward passes and updates of forward and feedback block."""

    @property
    def total(self) -> int:
        return self.target + self.forward + self.learn


def profiled_cut(job: Job) -> list[int]:
    """Layers of every block, such that the slowest block pair at work is as fast as possible.

    For end-to-end references, the layers themselves are what is balanced. The result depends on the clock, and nothing
    else does: the generator and the network of ``job`` stay as they were.
    """
    costs = [forward + backward for forward, backward in plain_times(job, job.shard_size)]
    if not isinstance(job.algorithm, LocalAlgorithm):
        return balance(costs, job.topology.blocks)
    return refine_partition(
        costs, job.topology.blocks, lambda counts, block: pair_time(job, rules_of(job, counts), block).total
    )


def plain_times(job: Job, batch: int, inputs: bool = True) -> list[tuple[int, int]]:
    """`layer_times` for ``batch`` samples, as this job computes."""
    network = copy.deepcopy(job.network)
    job.runtime.prepare_module(network, ())
    (example,) = _entered(job, (job.example[:batch],))
    with job.runtime.autocast():
        return layer_times(network, example, inputs)


def rules_of(job: Job, cut: Sequence[int]) -> RuleSet:
    """The local rules of ``job`` over blocks of ``cut`` layers, which are copies of its network's."""
    assert isinstance(job.algorithm, LocalAlgorithm)
    copied = replace(job, network=copy.deepcopy(job.network), cut=tuple(cut))
    return job.algorithm.rule_set(copied.rule_context)


def pair_time(job: Job, rules: RuleSet, block: int) -> BlockTime:
    """Times of block pair ``block``. It learns from made-up messages as large as real ones."""
    device = job.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rule = rules.rule(block)
        job.runtime.prepare_module(rule, rule.inference_modules)
        below, above = message_from_below(job, rules, block), _target_message(job, rules, block)

        def timed() -> tuple[int, int, int]:
            times = [synchronized_ns(device), *_steps(job, rules, rule, block, below, above)]
            target, forward, learn = (after - before for before, after in pairwise(times))
            return target, forward, learn

        return BlockTime(*best_of(timed))


def message_from_below(job: Job, rules: RuleSet, block: int) -> Payload:
    """A training batch as it enters ``block`` from below."""
    if block > 1:
        specs = rules.activation(block - 1, job.shard_size)
        return _received(job, MessageKind.ACTIVATION, made_up(specs), specs)
    labels = (job.batches.labels(0),) if job.plan.predicts_down else ()
    return _entered(job, tuple(tensor[: job.shard_size] for tensor in (job.example, *labels)))


def _steps(job: Job, rules: RuleSet, rule: LocalRule, block: int, below: Payload, above: Payload) -> Iterator[int]:
    """Do the work of the stage of ``rule``, block ``block`` of ``rules``, on one batch.

    Returns the time after each step. ``below`` and ``above`` are what it receives.
    """
    runtime, batch = job.runtime, job.shard_size
    target: Payload = ()
    if job.plan.targets_down:
        target = rule.receive_target(0, above)
        if block > 1:
            runtime.pack(MessageKind.TARGET, rule.make_target(0, target), rules.target(block - 1, 0, batch))
    yield synchronized_ns(job.device)
    with runtime.autocast():
        activation = rule.forward_message(below)
    if block < job.topology.blocks:
        runtime.pack(MessageKind.ACTIVATION, activation, rules.activation(block, batch))
    yield synchronized_ns(job.device)
    with runtime.autocast():
        rule.update(BatchPart(0), below, target)
    yield synchronized_ns(job.device)


def _target_message(job: Job, rules: RuleSet, block: int) -> Payload:
    labels = job.batches.labels(0)[: job.shard_size]
    if not job.plan.targets_down or block == job.topology.blocks:
        return (labels.to(job.device),)
    specs = rules.target(block, 0, job.shard_size)
    return _received(job, MessageKind.TARGET, (*made_up(specs[:-1]), labels), specs)


def _entered(job: Job, tensors: Payload) -> Payload:
    """Data on the device, as the bottom block gets them."""
    return job.runtime.unpack(tuple(tensor.to(job.device) for tensor in job.runtime.arrange(tensors)))


def _received(job: Job, kind: MessageKind, tensors: Payload, specs: MessageSpec) -> Payload:
    """``tensors`` on the device, as a message leaves them."""
    return job.runtime.unpack(tuple(tensor.to(job.device) for tensor in job.runtime.pack(kind, tensors, specs)))
