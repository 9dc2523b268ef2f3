"""The learning system of a run: local rules on the free engine, or a reference on a pipeline schedule."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.algorithms import ALGORITHMS, END_TO_END
from counterflow.algorithms.stale_gradient import StaleGradient, TrueGradient
from counterflow.engine import local
from counterflow.engine.job import Job
from counterflow.engine.profile import profiled_cut
from counterflow.engine.randomness import seed_forward
from counterflow.engine.rank_result import RankResult
from counterflow.engine.run_context import RunContext
from counterflow.models.partition import output_shapes, partition

Figures = Sequence[Mapping[str, float]]
"""What all blocks reported about one batch, bottom to top."""


@dataclass(frozen=True)
class Engine:
    run: Callable[[RunContext], RankResult]
    """This rank's part of the run, to its end."""
    summarize: Callable[[Figures], Mapping[str, float]]
    """The figures of the whole system from those of its blocks."""
    owners: Sequence[int]
    """The rank of each block, bottom to top."""


def choose_partition(job: Job) -> list[int]:
    """Layers of every block. Measured costs differ from rank to rank and run to run: one rank's count."""
    return job.counts or profiled_cut(job)


def build_engine(job: Job, counts: Sequence[int]) -> Engine:
    """The system that ``algorithm=`` and ``schedule=`` name, over blocks of ``counts`` layers."""
    config, example = job.config, job.example
    name = config.algorithm.name
    if name in END_TO_END:
        END_TO_END[name].convert(job.network, config.seed)
    owners = [job.topology.rank_of(block) for block in range(1, job.topology.blocks + 1)]
    blocks = partition(job.network, job.topology.blocks, counts, example)
    shapes = output_shapes(blocks, example)
    if job.schedule == "naive":
        measure = _true_gradient(job, blocks) if job.topology.ranks == 1 else _unknown
        naive = StaleGradient(config.optimizer, blocks, shapes, job.task, job.plan.batches, measure)
        return Engine(partial(local.run, job, naive), naive.summarize, owners)
    if name in END_TO_END:
        from counterflow.engine import pipelined  # a second of import, for every process that waits for nobody

        pipeline = pipelined.Pipeline(job, blocks, shapes)
        return Engine(pipeline.run, pipelined.summarize, pipeline.owners)
    algorithm = ALGORITHMS[name](
        config.algorithm, config.optimizer, blocks, shapes, job.task, job.plan.batches, config.seed
    )
    return Engine(partial(local.run, job, algorithm), algorithm.summarize, owners)


def _unknown(n: int, block: int) -> None:
    """No process of several has the weights of all blocks; one has, and its result is the same."""


def _true_gradient(job: Job, blocks: Sequence[nn.Module]) -> TrueGradient:
    every = job.config.train.log_every

    def measure(n: int, block: int) -> Sequence[Tensor] | None:
        if n % every and n != job.plan.batches - 1:
            return None
        copies = [copy.deepcopy(module) for module in blocks]
        activation = job.batches.inputs(n).to(job.device)
        for number, module in enumerate(copies, 1):
            seed_forward(job.device, job.config.seed, number, n)
            activation = module(activation)
        loss = F.cross_entropy(activation.flatten(0, -2), job.batches.labels(n).to(job.device).flatten())
        return torch.autograd.grad(loss, list(copies[block - 1].parameters()))

    return measure
