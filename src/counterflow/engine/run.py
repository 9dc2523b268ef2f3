"""One rank's part of a run, from the cut of the network to its outcome."""

from dataclasses import dataclass, replace
from time import perf_counter

from counterflow.algorithms import ALGORITHMS, Algorithm
from counterflow.engine.channels import Channels
from counterflow.engine.execute import execute
from counterflow.engine.job import Job
from counterflow.engine.station import Observer, Station, Waits
from counterflow.metrics.fingerprint import digest
from counterflow.models.partition import layer_counts, output_shapes, partition
from counterflow.schedule import Op, rank_program
from counterflow.transport import World


@dataclass(frozen=True)
class Outcome:
    """What one rank knows at the end."""

    digests: list[bytes]
    """sha256 of the parameters and buffers of its blocks, bottom to top."""
    seconds: float
    """Wall time of its steady state: without the fill before it and the drain after it."""
    batches: int
    """Training batches of its steady state."""
    receive_wait: float
    """Seconds of these that it waited for a message."""
    send_wait: float
    """Seconds of these that it waited for room to send."""


def cut(job: Job, world: World) -> list[int]:
    """Layers of every block. Measured costs differ from rank to rank and run to run: rank 0's count."""
    example = job.batches.inputs(0)
    wanted = job.config.model.cut
    if wanted == "measured":
        mine = layer_counts(job.network, job.topology.blocks, wanted, example) if world.rank == 0 else None
        counts = world.gather(mine, "the measured cut")[0]
        assert isinstance(counts, list)
        return counts
    return layer_counts(job.network, job.topology.blocks, wanted, example)


def build_algorithm(job: Job, counts: list[int]) -> Algorithm:
    example = job.batches.inputs(0)
    blocks = partition(job.network, job.topology.blocks, counts, example)
    shapes = output_shapes(blocks, example)
    config = job.config
    return ALGORITHMS[config.algorithm.name](
        config.algorithm, config.optimizer, blocks, shapes, job.task, job.plan.batches, config.seed
    )


def run(job: Job, algorithm: Algorithm, world: World, observer: Observer, waits: Waits) -> Outcome:
    """Train this rank's blocks to the end. Raises `ChannelError` or `RunError`, after which the process should end."""
    blocks = job.topology.blocks_of(world.rank)
    channels = Channels(job, algorithm, world)
    stations = {
        block: Station(
            block,
            algorithm.rule(block).to(job.device),
            channels.ports(block),
            job.plan,
            job.config.seed,
            job.device,
            observer,
            waits,
        )
        for block in blocks
    }
    steady = min(job.topology.blocks, job.plan.batches // 2)
    start, before = perf_counter(), Waits()
    for action in execute(rank_program(blocks, job.plan), stations, world.rank):
        if action.op is Op.LEARN and action.block == blocks[-1] and action.n == steady - 1:
            start, before = perf_counter(), replace(waits)
    seconds = perf_counter() - start
    outcome = Outcome(
        digests=[digest(station.rule) for station in stations.values()],
        seconds=seconds,
        batches=job.plan.batches - steady,
        receive_wait=waits.receive - before.receive,
        send_wait=waits.send - before.send,
    )
    for station in stations.values():
        station.close()
    return outcome
