"""One benchmark case, and the tasks that its ranks run. The only module of the benchmarks that starts the engine."""

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import torch

from counterflow.algorithms.optimizer import BatchPart
from counterflow.algorithms.rule import Metrics
from counterflow.bench.ddp import ddp_updates
from counterflow.bench.sleeping import Sleep, sleep_in_updates
from counterflow.checkpoint import CheckpointWriter
from counterflow.config import TrainConfig
from counterflow.engine import cost
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job
from counterflow.engine.profile import rules_of
from counterflow.engine.run_context import RunContext, WaitTimes
from counterflow.engine.runtime import Runtime
from counterflow.metrics.block_metrics import Value
from counterflow.rank_info import RankInfo
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.stream_recorder import make_recorder
from counterflow.trainer.job_builder import load_job
from counterflow.transport import Communicator


@dataclass(frozen=True)
class BenchmarkCase:
    """One training run to measure."""

    name: str
    ranks: int
    config: TrainConfig
    batches: int
    """Update batches of one measurement."""
    warmup: int
    """The first of these batches, which are not timed: the fill of the pipeline, and one-time costs."""
    task: "Callable[[Communicator, BenchmarkCase], RankMeasurement]"
    """The function that every rank runs."""
    sleep: Sleep | None = None
    """Times of the blocks, if they sleep instead of computing."""
    microbatches: int | None = None
    """Parts of an update batch that a pipeline sends one after the other; None for local rules and for DDP."""


@dataclass(frozen=True)
class RankMeasurement:
    """Measurements of one rank."""

    seconds: float
    """Wall-clock seconds of the timed batches."""
    batches: int
    """Number of timed batches."""
    receive_wait: float
    """Seconds waiting for messages, part of ``seconds``."""
    send_wait: float
    """Seconds waiting for free send buffers, part of ``seconds``."""
    cpu_seconds: float
    """CPU time of all threads since the process started."""
    peak_rss_bytes: int
    peak_cuda_bytes: int | None
    cut: Sequence[int]
    """Layers of every block."""
    processor_seconds: float
    """CPU time of all threads in the timed batches."""


class SteadyTimer:
    """Engine observer that times the batches from ``warmup`` to ``batches`` - 1."""

    def __init__(self, waits: WaitTimes, warmup: int, batches: int, runtime: Runtime) -> None:
        assert 0 < warmup < batches
        self._waits = waits
        self._runtime = runtime
        self._before, self._last = warmup - 1, batches - 1
        self._stamps: dict[int, tuple[float, float, float, float]] = {}

    def should_log(self, n: int) -> bool:
        return False

    def on_step(self, block: int, n: int, metrics: Metrics) -> None:
        if n in (self._before, self._last):  # the last block of a rank overwrites the stamps of the others
            self._stamps[n] = self._runtime.now(), process_time(), self._waits.receive, self._waits.send

    def on_eval(self, block: int, n: int, split: str, figures: Mapping[str, Value]) -> None:
        raise AssertionError("benchmarks do not evaluate")

    def measurement(self, counts: Sequence[int]) -> RankMeasurement:
        """The measurement of this process after the last batch, for blocks of ``counts`` layers."""
        device = self._runtime.device
        (start, used, receive, send), (end, all_used, received, sent) = (
            self._stamps[n] for n in (self._before, self._last)
        )
        return RankMeasurement(
            seconds=end - start,
            batches=self._last - self._before,
            receive_wait=received - receive,
            send_wait=sent - send,
            cpu_seconds=process_time(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            peak_cuda_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            cut=counts,
            processor_seconds=all_used - used,
        )


def train(comm: Communicator, case: BenchmarkCase) -> RankMeasurement:
    """Train ``case`` on the ranks of ``comm``, as ``launch/train.py`` does, but without reports and checkpoints."""
    return _train(comm, case, *_prepare(comm, case, comm.size, comm.rank))


def _train(
    comm: Communicator, case: BenchmarkCase, job: Job, timer: SteadyTimer, context: RunContext
) -> RankMeasurement:
    if case.sleep is not None:
        sleep_in_updates(case.sleep)
    cut = comm.all_gather(choose_partition(job) if comm.rank == 0 else None, "the cut")[0]
    build_engine(replace(job, cut=cut)).run(context)
    return timer.measurement(cut)


def train_traced(comm: Communicator, case: BenchmarkCase) -> tuple[RankMeasurement, RankTrace]:
    """`train`, with a trace of this rank. All ranks are on one machine and share its clock."""
    job, timer, context = _prepare(comm, case, comm.size, comm.rank)
    recorder = make_recorder(job.device)
    measured = _train(comm, case, job, timer, replace(context, recorder=recorder))
    return measured, RankTrace.of(comm.rank, recorder)


def train_ddp(comm: Communicator, case: BenchmarkCase) -> RankMeasurement:
    """Train ``case`` with DistributedDataParallel: every rank has the whole network and its share of each batch."""
    job, timer, _ = _prepare(comm, case, ranks=1, rank=0)
    for n in ddp_updates(job, comm):
        timer.on_step(1, n, {})
    return timer.measurement([len(job.network)])


def sleep_without_engine(comm: Communicator, case: BenchmarkCase) -> tuple[float, float]:
    """Run this rank's sleeping block without engine and messages: the baseline of the engine's overhead.

    All ranks start at the same time.

    Returns:
        Wall-clock seconds per batch, and CPU seconds per batch.
    """
    job, _, _ = _prepare(comm, case, comm.size, comm.rank)
    rule = rules_of(job, choose_partition(job)).rule(comm.rank + 1)
    comm.all_gather(None, "the start")
    start, cpu = perf_counter(), process_time()
    for n in range(case.batches):
        rule.forward_message(())
        rule.update(BatchPart(n), (), ())
    return (perf_counter() - start) / case.batches, (process_time() - cpu) / case.batches


def count_flops(comm: Communicator, config: TrainConfig) -> cost.Flops:
    """FLOPs per sample, summed over all blocks."""
    job = load_job(config, RankInfo(size=comm.size))
    rules = rules_of(job, choose_partition(job))
    flops = (cost.local(rules, block, rules.rule(block), job) for block in range(1, config.blocks + 1))
    return sum(flops, cost.Flops(0, 0, 0))


def _prepare(comm: Communicator, case: BenchmarkCase, ranks: int, rank: int) -> tuple[Job, SteadyTimer, RunContext]:
    """The job of ``case`` without evaluations, its timer, and its context without checkpoints.

    Args:
        comm: The processes of the measurement.
        case: The case.
        ranks: Processes that share the blocks: 1 if every process has the whole network.
        rank: This process among them.
    """
    job = load_job(case.config, RankInfo(rank, ranks, rank, ranks))
    plan = replace(job.plan, batches=case.batches, validation_batches=0, test_batches=0, evaluate_every=0)
    waits = WaitTimes()
    timer = SteadyTimer(waits, case.warmup, case.batches, job.runtime)
    return replace(job, plan=plan), timer, RunContext(comm, timer, CheckpointWriter(), waits)
