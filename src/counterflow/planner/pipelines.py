"""Pipelines of backprop on the same machines, to compare with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from counterflow.planner.cuts import Cuts
from counterflow.planner.machines import Machines
from counterflow.planner.network import Network
from counterflow.planner.stages import backprop, backprop_memory, cut, load
from counterflow.schedule.forecast import forecast

SCHEDULES = ("gpipe", "1f1b")
_BATCHES = 2
"""Simulated ones: an update ends each, so that they are alike."""
_SLOW = 6
"""Slow batches that are simulated, where there are any."""
_MOST_BATCHES = 100


@dataclass(frozen=True, kw_only=True)
class Pipelined:
    """What is predicted for one schedule, a process for each block."""

    schedule: str
    microbatches: int
    cut: Sequence[int]
    seconds_per_batch: float
    samples_per_second: float
    memory: Sequence[int]
    """Bytes of every rank."""


def even(network: Network, most: int) -> Cuts:
    """Cuts into at most ``most`` stages, balanced by what layers take for a whole batch."""
    stage = backprop(network, 1.0, 1)
    return Cuts(lambda start, end: stage(start, end).seconds, len(network.layers), most)


def pipelines(network: Network, machines: Machines, counts: Sequence[int]) -> list[Pipelined]:
    """Every schedule at the number of micro-batches that makes it fastest, if it fits into memory at any."""
    found = []
    for schedule in SCHEDULES if len(counts) > 1 else ():
        best: Pipelined | None = None
        for microbatches in _divisors(network.batch):
            if schedule == "1f1b" and microbatches < len(counts):
                continue
            one = _pipelined(schedule, network, machines, counts, microbatches)
            if max(one.memory) > machines.memory:
                continue
            if best is not None and one.seconds_per_batch > best.seconds_per_batch:
                break  # smaller parts fill the pipeline sooner, until what each costs whatever its size outweighs that
            best = one
        if best is not None:
            found.append(best)
    return found


def _pipelined(
    schedule: str, network: Network, machines: Machines, counts: Sequence[int], microbatches: int
) -> Pipelined:
    stages = cut(backprop(network, machines.speed, microbatches), counts)
    batches = _BATCHES
    if machines.jitter_share:
        batches += min(_MOST_BATCHES, int(_SLOW / machines.jitter_share))
    found = forecast(
        schedule,
        load(stages),
        ranks=len(stages),
        batches=batches,
        microbatches=microbatches,
        link=machines.link,
        jitter=machines.jitter(len(stages), batches),
        overhead=machines.overhead,
        keep=False,
    )
    return Pipelined(
        schedule=schedule,
        microbatches=microbatches,
        cut=counts,
        seconds_per_batch=found.seconds_per_batch,
        samples_per_second=network.batch / found.seconds_per_batch,
        memory=backprop_memory(stages, found.in_flight, microbatches),
    )


def _divisors(batch: int) -> Iterator[int]:
    return (m for m in range(1, batch + 1) if batch % m == 0)
