"""Whole training runs on ranks of their own, timed from the first batch to the last update, and evaluated after it."""

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import torch
from torch import nn

from counterflow.algorithms.rule import Metrics
from counterflow.bench.ddp import ddp_bytes, ddp_updates
from counterflow.checkpoint import CheckpointWriter
from counterflow.config import TrainConfig
from counterflow.engine import cost
from counterflow.engine.evaluation import AccuracyMeter
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job
from counterflow.engine.run_context import RunContext
from counterflow.metrics.block_metrics import Value
from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import load_job
from counterflow.transport import Communicator


@dataclass(frozen=True)
class WholeRun:
    """One training run as one rank saw it."""

    seconds: float
    """From the common start to this rank's last update, without the evaluation after it."""
    processor_seconds: float
    """CPU time of all threads in this time."""
    peak_rss_bytes: int
    batches: int
    batch: int
    """Samples of a batch."""
    evaluations: tuple[Mapping[str, Value], ...]
    """Metrics of the whole network on held-out data, one for each evaluation; empty on ranks that do not have them."""
    flops: float
    """FLOPs of learning from a sample, of this rank's blocks."""
    sent_bytes: float
    """Bytes of a training batch that this rank sends to others."""


class RunTimer:
    """Engine observer that notes the time of the last update, and what evaluations say of the top block."""

    def __init__(self, top: int, batches: int) -> None:
        self._top, self._last = top, batches - 1
        self.evaluations: list[Mapping[str, Value]] = []
        self.start = self.end = perf_counter(), process_time()

    def should_log(self, n: int) -> bool:
        return False

    def begin(self) -> None:
        self.start = perf_counter(), process_time()

    def on_step(self, block: int, n: int, metrics: Metrics) -> None:
        if n == self._last:  # the last block of a rank overwrites the stamps of the others
            self.end = perf_counter(), process_time()

    def on_eval(self, block: int, n: int, split: str, figures: Mapping[str, Value]) -> None:
        if block == self._top and split == "validation" and figures:
            self.evaluations.append(figures)

    def run(self, job: Job, flops: float, sent_bytes: float) -> WholeRun:
        """The run of ``job``, which has ended."""
        (start, used), (end, all_used) = self.start, self.end
        return WholeRun(
            seconds=end - start,
            processor_seconds=all_used - used,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            batches=job.plan.batches,
            batch=job.batch_size,
            evaluations=tuple(self.evaluations),
            flops=flops,
            sent_bytes=sent_bytes,
        )


def train_whole(comm: Communicator, config: TrainConfig) -> WholeRun:
    """Train ``config`` to its end on the ranks of ``comm``, as ``launch/train.py`` does, without its test data."""
    job = _without_test(load_job(config, RankInfo(comm.rank, comm.size, comm.rank, comm.size)))
    cut = comm.all_gather(choose_partition(job) if comm.rank == 0 else None, "the cut")[0]
    engine = build_engine(replace(job, cut=cut))
    timer = RunTimer(config.blocks, job.plan.batches)
    comm.all_gather(None, "the start")
    timer.begin()
    result = engine.run(RunContext(comm, timer, CheckpointWriter()))
    return timer.run(job, result.flops.learning, _sent(engine.owners, engine.bytes_per_batch(), comm.rank))


def train_whole_ddp(comm: Communicator, config: TrainConfig) -> WholeRun:
    """`train_whole` with DistributedDataParallel: every rank has the whole network, and its share of a batch."""
    job = _without_test(load_job(config, RankInfo()))
    flops = cost.end_to_end(replace(job, cut=(len(job.network),)), 1).learning / comm.size
    timer = RunTimer(1, job.plan.batches)
    comm.all_gather(None, "the start")
    timer.begin()
    for n in ddp_updates(job, comm):
        timer.on_step(1, n, {})
    if comm.rank == 0:
        timer.on_eval(1, job.plan.batches - 1, "validation", _evaluate(job, job.network.eval()))
    return timer.run(job, flops, ddp_bytes(job, comm.size))


def count_sent(comm: Communicator, config: TrainConfig, ranks: int) -> float:
    """Bytes of a training batch of ``config`` that all ``ranks`` send to each other. Runs on one process."""
    job = load_job(config, RankInfo(size=ranks))
    engine = build_engine(replace(job, cut=choose_partition(job)))
    return sum(_sent(engine.owners, engine.bytes_per_batch(), rank) for rank in range(ranks))


def count_ddp_sent(comm: Communicator, config: TrainConfig, ranks: int) -> float:
    """`count_sent` of DistributedDataParallel."""
    return ranks * ddp_bytes(load_job(config, RankInfo()), ranks)


def last_figure(ranks: Sequence[WholeRun], name: str) -> float:
    """The metric ``name`` of the last evaluation of a run, which one of its ``ranks`` has."""
    (evaluations,) = (rank.evaluations for rank in ranks if rank.evaluations)
    value = evaluations[-1][name]
    assert isinstance(value, float)
    return value


@torch.no_grad()
def _evaluate(job: Job, network: nn.Module) -> Mapping[str, Value]:
    """Metrics of ``network`` on held-out data, in the plain view alone."""
    meter = AccuracyMeter(job.batches.dataset.tokens_per_byte)
    for e in job.batches.validation:
        view = job.batches.view(e)
        if view.plain:
            with job.runtime.autocast():
                inputs = job.runtime.unpack(job.runtime.arrange((job.batches.evaluation_inputs(e),)))
                scores = network(*inputs).unsqueeze(0)
            meter.add(scores.argmax(-1), scores, job.batches.evaluation_labels(e), view)
    return meter.take("validation")[0]


def _without_test(job: Job) -> Job:
    return replace(job, plan=replace(job.plan, test_batches=0))


def _sent(owners: Sequence[int], edges: Mapping[str, Sequence[int]], rank: int) -> float:
    """Bytes of a batch that ``rank`` sends over edges between blocks of different owners."""
    crossing = [edge for edge in range(len(owners) - 1) if owners[edge] != owners[edge + 1]]
    up = sum(edges["up"][edge] for edge in crossing if owners[edge] == rank)
    return up + sum(edges["down"][edge] for edge in crossing if owners[edge + 1] == rank)
