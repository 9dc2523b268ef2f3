"""The engine of a run: local rules, or an end-to-end reference on a pipeline schedule."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.algorithms import EndToEnd, LocalAlgorithm, RuleSet
from counterflow.algorithms.stale_gradient import StaleGradient, TrueGradient
from counterflow.algorithms.weight_stashing import WeightStashing
from counterflow.config import ASYNCHRONOUS
from counterflow.engine import local
from counterflow.engine.job import Job
from counterflow.engine.message_sizes import MessageBytes, local_bytes, pipeline_bytes
from counterflow.engine.profile import profiled_cut
from counterflow.engine.run_context import RankResult, RunContext
from counterflow.schedule.pipeline_schedules import block_owners

BlockValues = Sequence[Mapping[str, float]]
"""Metrics of all blocks about one batch, bottom to top."""


@dataclass(frozen=True)
class Engine:
    run: Callable[[RunContext], RankResult]
    """Trains this rank's part to the end of the run."""
    summarize: Callable[[BlockValues], Mapping[str, float]]
    """Metrics of the whole network from those of its blocks."""
    owners: Sequence[int]
    """The rank of each block, bottom to top."""
    bytes_per_batch: Callable[[], MessageBytes]
    """Bytes of the messages of a training batch."""


def choose_partition(job: Job) -> tuple[int, ...]:
    """Layers of every block. Measured costs differ from rank to rank and run to run: one rank's count."""
    return job.cut if job.cut is not None else tuple(profiled_cut(job))


def build_engine(job: Job) -> Engine:
    """The engine for the algorithm and schedule of ``job``, whose cut is settled."""
    owners = block_owners(job.schedule, job.topology)
    if isinstance(job.algorithm, LocalAlgorithm):
        algorithm = job.algorithm
        rules = algorithm.rule_set(job.rule_context)
        return _local_engine(job, rules, lambda view: algorithm.rule_set(view.rule_context), owners)
    assert isinstance(job.algorithm, EndToEnd)
    job.algorithm.convert(job.network, job.seed)
    if job.schedule in ASYNCHRONOUS:
        kind, smoothing = WeightStashing if job.schedule == "pipedream" else StaleGradient, job.algorithm.smoothing
        stale = kind(job.rule_context, _true_gradient(job, smoothing), smoothing)
        return _local_engine(job, stale, lambda view: stale, owners)
    from counterflow.engine import pipelined  # a second of import, for every process that waits for nobody

    return Engine(pipelined.Pipeline(job).run, pipelined.summarize, owners, partial(pipeline_bytes, job))


def _local_engine(job: Job, rules: RuleSet, make_rules: Callable[[Job], RuleSet], owners: Sequence[int]) -> Engine:
    return Engine(partial(local.run, job, make_rules), rules.summarize, owners, partial(local_bytes, job, rules))


def _true_gradient(job: Job, smoothing: float) -> TrueGradient:
    """No process of several has the weights of all blocks, so only one alone measures; its result is the same."""

    def measure(n: int, block: int) -> Sequence[Tensor] | None:
        logged = n % job.log_every == 0 or n == job.plan.batches - 1
        if job.topology.ranks > 1 or not logged or not any(p.requires_grad for p in job.blocks[block - 1].parameters()):
            return None
        copies = [copy.deepcopy(module) for module in job.blocks]
        activation = job.batches.inputs(n).to(job.device)
        for number, module in enumerate(copies, 1):
            job.runtime.seed_forward(job.seed, number, n)
            activation = module(activation)
        labels = job.batches.labels(n).to(job.device).flatten()
        loss = F.cross_entropy(activation.flatten(0, -2), labels, label_smoothing=smoothing)
        return torch.autograd.grad(loss, [p for p in copies[block - 1].parameters() if p.requires_grad])

    return measure
