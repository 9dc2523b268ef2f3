"""Bytes of the messages of a training batch, as their layouts say, with headers and padding."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from counterflow.algorithms.rule import RuleSet
from counterflow.engine.channels import message_layout
from counterflow.engine.job import Job
from counterflow.engine.stage_blocks import empty_message
from counterflow.message import MessageKind

MessageBytes = Mapping[str, Sequence[int]]
"""``up`` and ``down``: bytes of a training batch over every edge between blocks of a replica, bottom to top."""

_MOST = 1000
"""Batches of which the mean is taken: code books may come with some of them only."""


def local_bytes(job: Job, rules: RuleSet) -> MessageBytes:
    """Under local rules, ``naive`` and ``pipedream``."""
    lower = range(1, job.topology.blocks)
    return {"up": [up_bytes(job, rules, k) for k in lower], "down": [down_bytes(job, rules, k) for k in lower]}


def up_bytes(job: Job, rules: RuleSet, lower: int) -> int:
    """Bytes that go up from block ``lower`` for a training batch, in all its parts."""
    parts = job.plan.parts
    return parts * message_layout(job, MessageKind.ACTIVATION, rules.activation(lower, job.shard_size // parts)).nbytes


def down_bytes(job: Job, rules: RuleSet, lower: int) -> int:
    """Bytes that come down to block ``lower`` for a training batch, without the labels of evaluations.

    The mean over the first batches of the run, up to 1,000.
    """
    if job.plan.predicts_down:
        return 0
    kind = MessageKind.GRADIENT if job.plan.gradients_from else MessageKind.TARGET
    batches = min(job.plan.batches, _MOST)
    contents = Counter(rules.target(lower, n, job.shard_size) for n in range(batches))
    return round(sum(message_layout(job, kind, specs).nbytes * times for specs, times in contents.items()) / batches)


def pipeline_bytes(job: Job) -> MessageBytes:
    """Under a pipeline schedule of torch, whose messages have no header, if every block is a stage of its own."""
    size = job.batch_size // job.microbatches
    shapes = [(size, *shape) for shape in job.shapes[:-1]]
    sizes = [job.microbatches * output_bytes(job, shape) for shape in shapes]
    return {"up": sizes, "down": sizes}


def output_bytes(job: Job, shape: tuple[int, ...]) -> int:
    """Bytes of an activation of ``shape``, or of its gradient, under a pipeline schedule of torch."""
    return empty_message(shape, job.runtime.wire, torch.device("meta")).nbytes
