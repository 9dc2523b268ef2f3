"""One system under measurement, and what each rank of it found out."""

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from counterflow.algorithms import ALGORITHMS
from counterflow.algorithms.optimizer import BlockOptimizer
from counterflow.bench.sleeping import Sleep, SleepingColumn, sleep_in_updates
from counterflow.bench.stopwatch import Lap, Stopwatch
from counterflow.checkpoint import CheckpointDirectory, CheckpointWriter
from counterflow.config import TrainConfig
from counterflow.data.prefetch import prefetch
from counterflow.engine import local
from counterflow.engine.factory import build_engine, choose_partition
from counterflow.engine.job import Job, build_job
from counterflow.engine.run_context import RunContext
from counterflow.engine.stage import WaitTimes
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import Recorder
from counterflow.transport import Communicator


@dataclass(frozen=True)
class Contender:
    name: str
    ranks: int
    config: TrainConfig
    batches: int
    """Update batches of one measurement."""
    warm: int
    """The first ones of these, which are not timed: the fill, and whatever is slow once."""
    task: "Callable[[Communicator, Contender], Reading]"
    """What every rank does."""
    sleep: Sleep | None = None
    """What blocks take, if they sleep."""
    microbatches: int | None = None
    """Parts that a pipeline sends one after the other; None where there is nothing to cut."""


@dataclass(frozen=True)
class Reading:
    """What one rank found out."""

    lap: Lap
    cpu_seconds: float
    """Of all threads of the process, from its birth on."""
    peak_rss_bytes: int
    peak_cuda_bytes: int | None
    cut: Sequence[int]
    """Layers of every block."""


def train(comm: Communicator, contender: Contender) -> Reading:
    """A run as ``launch/train.py`` makes it, without its reports."""
    return _train(comm, contender, None)


def _train(comm: Communicator, contender: Contender, recorder: Recorder | None) -> Reading:
    job = _job(contender, comm.size, comm.rank)
    watch, context = _session(comm, contender, recorder)
    config, sleep = contender.config, contender.sleep
    if sleep is not None:
        sleep_in_updates(sleep)
    if sleep is not None and config.algorithm.name in ALGORITHMS:
        counts = [1] * config.blocks
        local.run(job, SleepingColumn(config.blocks, sleep, config.optimizer, contender.batches), context)
    else:
        counts = comm.all_gather(choose_partition(job) if comm.rank == 0 else None, "the cut")[0]
        build_engine(job, counts).run(context)
    return _reading(watch, counts)


def trace(comm: Communicator, contender: Contender) -> tuple[Reading, RankTrace]:
    """The same, with all that this rank did; all ranks are on one machine, and so on one clock."""
    recorder = Recorder()
    return _train(comm, contender, recorder), RankTrace.of(comm.rank, recorder)


def replicate(comm: Communicator, contender: Contender) -> Reading:
    """DistributedDataParallel: every rank has the whole network and its share of each batch."""
    job = _job(contender, ranks=1)
    watch, context = _session(comm, contender)
    network = DistributedDataParallel(job.network.train())
    optimizer = BlockOptimizer(network.parameters(), job.config.optimizer, job.plan.batches)
    share = job.config.train.batch_size // comm.size
    mine = slice(comm.rank * share, (comm.rank + 1) * share)
    items = ((job.batches.inputs(n)[mine], job.batches.labels(n)[mine]) for n in range(job.plan.batches))
    for n, (inputs, labels) in enumerate(prefetch(items)):
        torch.autograd.backward(F.cross_entropy(network(inputs), labels))
        optimizer.step(n)
        context.callback.on_step(1, n, {})
    return _reading(watch, [len(job.network)])


def _job(contender: Contender, ranks: int, rank: int = 0) -> Job:
    job = build_job(contender.config, ranks, rank, ranks)
    plan = replace(job.plan, batches=contender.batches, validation_batches=0, test_batches=0, evaluate_every=0)
    return replace(job, plan=plan)


def _session(
    comm: Communicator, contender: Contender, recorder: Recorder | None = None
) -> tuple[Stopwatch, RunContext]:
    waits = WaitTimes()
    watch = Stopwatch(waits, contender.warm, contender.batches)
    nothing = CheckpointWriter(
        CheckpointDirectory(Path()), None, torch.device("cpu"), lambda saved: None, comm.watch.timeout
    )
    return watch, RunContext(comm, watch, waits, nothing, recorder)


def _reading(watch: Stopwatch, counts: Sequence[int]) -> Reading:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return Reading(watch.lap(), process_time(), peak, cuda, counts)
