"""What block pairs take in time, measured as they would run, and the cut that balances it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from counterflow.algorithms import ALGORITHMS, END_TO_END, RuleSet
from counterflow.algorithms.rule import LocalRule, Payload
from counterflow.engine.cost import made_up
from counterflow.engine.job import Job
from counterflow.models.partition import (
    balance,
    best_of,
    layer_times,
    output_shapes,
    partition,
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
    costs = [forward + backward for forward, backward in plain_times(job, job.config.train.batch_size)]
    if job.config.algorithm.name in END_TO_END:
        return balance(costs, job.topology.blocks)
    return refine_partition(
        costs, job.topology.blocks, lambda counts, block: pair_time(job, column_of(job, counts), block).total
    )


def plain_times(job: Job, batch: int, inputs: bool = True) -> list[tuple[int, int]]:
    """`layer_times` for ``batch`` samples, as this job computes."""
    network = copy.deepcopy(job.network)
    job.numerics.prepare_module(network, ())
    (example,) = _received(job, (job.example[:batch],))
    with job.numerics.autocast():
        return layer_times(network, example, inputs)


def column_of(job: Job, counts: Sequence[int]) -> RuleSet:
    """The local rules of ``job`` over blocks of ``counts`` layers, which are copies of its network's."""
    config = job.config
    blocks = partition(copy.deepcopy(job.network), len(counts), counts, job.example)
    shapes = output_shapes(blocks, job.example)
    algorithm = ALGORITHMS[config.algorithm.name]
    return algorithm(config.algorithm, config.optimizer, blocks, shapes, job.task, job.plan.batches, config.seed)


def pair_time(job: Job, column: RuleSet, block: int) -> BlockTime:
    """Of block pair ``block`` of ``column``, which learns from it: messages are made up, as large as real ones."""
    device = job.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rule = column.rule(block)
        job.numerics.prepare_module(rule, rule.inference_modules)
        below, above = message_from_below(job, column, block), _target_message(job, column, block)

        def timed() -> tuple[int, int, int]:
            times = [synchronized_ns(device), *_steps(job, rule, block, below, above)]
            target, forward, learn = (after - before for before, after in pairwise(times))
            return target, forward, learn

        return BlockTime(*best_of(timed))


def message_from_below(job: Job, column: RuleSet, block: int) -> Payload:
    """A training batch as it enters ``block`` from below."""
    if block > 1:
        return _received(job, made_up(column.activation(block - 1, job.config.train.batch_size)))
    return _received(job, (job.example, *((job.batches.labels(0),) if job.plan.predicts_down else ())))


def _steps(job: Job, rule: LocalRule, block: int, below: Payload, above: Payload) -> Iterator[int]:
    """What a station does with a batch; the time after each step."""
    target: Payload = ()
    if job.plan.targets_down:
        target = rule.receive_target(0, above)
        if block > 1:
            job.numerics.pack(rule.make_target(0, target))
    yield synchronized_ns(job.device)
    with job.numerics.autocast():
        activation = rule.forward_message(below)
    job.numerics.pack(activation)
    yield synchronized_ns(job.device)
    with job.numerics.autocast():
        rule.update(0, below, target)
    yield synchronized_ns(job.device)


def _target_message(job: Job, column: RuleSet, block: int) -> Payload:
    labels = job.batches.labels(0)
    if not job.plan.targets_down or block == job.topology.blocks:
        return (labels.to(job.device),)
    *book, _ = column.target(block, 0, job.config.train.batch_size)
    return _received(job, (*made_up(tuple(book)), labels))


def _received(job: Job, message: Payload) -> Payload:
    """``message`` on the device, in the layout that channels give it."""
    return job.numerics.unpack(tuple(tensor.to(job.device) for tensor in job.numerics.pack(message)))
