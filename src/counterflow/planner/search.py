"""Search for the number of blocks, the partition, the lag and the depth of a run, on a profile and without a clock."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import inf
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.planner.model_profile import (
    ModelProfile,
    StageEstimate,
    backprop_memory,
    backprop_stage,
    local_memory,
    local_stage,
    stages_of,
    workload,
)
from counterflow.planner.options import Cluster
from counterflow.schedule.forecast import Forecast, Jitter, forecast
from counterflow.schedule.pipeline_schedules import microbatch_counts

_EQUAL = 1e-9
"""Relative difference up to which costs of a partition are equal: they are sums in different orders."""
COMPARED = ("gpipe", "1f1b")
"""Pipelines of backprop that each candidate is compared with."""
TOLERANCE = 0.01
"""Relative difference up to which rates are equal."""
_ALL_COUNTS = 16
"""Largest number of ranks for which every number of blocks is a candidate; beyond, powers of two and divisors are."""
_SPACING = 1.5
"""Smallest ratio of two such numbers of blocks."""
_NEIGHBOURS = 32
"""Stages around the slowest one for which lag and depth are chosen: a target only ever waits for neighbours."""
_LARGEST = 2048
"""Largest lag and depth."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction for one partition, with a process for each part."""

    cut: Sequence[int]
    seconds_per_batch: float
    samples_per_second: float
    memory: Sequence[int]
    """Bytes of every rank."""


@dataclass(frozen=True, kw_only=True)
class PipelineCandidate(Prediction):
    """Prediction for one pipeline of backprop."""

    schedule: str
    microbatches: int


@dataclass(frozen=True, kw_only=True)
class Candidate(Prediction):
    """Prediction for one number of blocks."""

    blocks: int
    lag: int
    depth: int
    speed_up: float
    """Ratio to one process."""
    wait_fraction: float
    """Mean over all ranks."""
    fill_seconds: float
    """Seconds until the top block has its first activation."""
    bytes_per_batch: Mapping[str, Sequence[int]]
    """``up`` and ``down``: bytes over every edge, bottom to top, for a batch."""
    up: float
    """Bytes per second over the busiest edge."""
    down: float
    pipelines: Sequence[PipelineCandidate] = ()
    """The same processes under pipelines of backprop, each at its best number of micro-batches."""


@dataclass(frozen=True)
class SearchResult:
    """All candidates, by number of blocks."""

    candidates: Sequence[Candidate]
    too_large: Sequence[tuple[int, int]]
    """Numbers of blocks that do not fit into memory, and the bytes that their largest process needs."""

    @property
    def best(self) -> Candidate:
        """The smallest of the fastest candidates."""
        best_of = min(candidate.seconds_per_batch for candidate in self.candidates)
        return next(c for c in self.candidates if c.seconds_per_batch * (1 - TOLERANCE) <= best_of)


def search(profile: ModelProfile, cluster: Cluster, lag: int, depth: int, log: Callable[[str], None]) -> SearchResult:
    """Predict every number of blocks that may pay.

    Args:
        profile: Costs of the model's layers.
        cluster: Machines.
        lag: Smallest lag to consider.
        depth: Smallest depth to consider.
        log: Called with every step.

    Raises:
        ValueError: No number of blocks fits into the memory of the machines.
    """
    layers = len(profile.layers)
    most = min(cluster.ranks, layers)
    stage, backprop = local_stage(profile, cluster.speed), backprop_stage(profile, 1.0, 1)

    def memory(start: int, end: int) -> float:
        block = stage(start, end)
        return block.states + block.kept

    log("cuts")
    bandwidth = cluster.link.bandwidth
    fits = PartitionTable(
        lambda start, end: _pace(stage(start, end), bandwidth) if memory(start, end) <= cluster.memory else inf,
        layers,
        most,
    )
    even = PartitionTable(lambda start, end: backprop(start, end).seconds, layers, most)
    alone = stage(0, layers).seconds
    candidates: list[Candidate] = []
    too_large: list[tuple[int, int]] = []
    best_of = inf
    for blocks in _block_counts(most, cluster.ranks):
        slowest = fits.slowest(blocks)
        if most > _ALL_COUNTS and (1 - TOLERANCE) * best_of < slowest < inf:
            continue  # more processes, and none of them has less to do
        counts = (fits if slowest < inf else PartitionTable(memory, layers, blocks)).counts(blocks)
        stages = stages_of(stage, counts)
        needed = max(local_memory(stages, lag, depth))
        if needed > cluster.memory:
            too_large.append((blocks, needed))
            continue
        best_of = min(best_of, slowest)
        log(f"{blocks} blocks")
        best_lag, best_depth, seconds, simulated = _tune(cluster, stages, lag, depth)
        log(f"{blocks} blocks under pipelines of backprop")
        candidates.append(
            Candidate(
                blocks=blocks,
                cut=counts,
                lag=best_lag,
                depth=best_depth,
                seconds_per_batch=seconds,
                samples_per_second=profile.batch / seconds,
                speed_up=alone / seconds,
                wait_fraction=mean(simulated.wait_fraction),
                fill_seconds=simulated.fill,
                memory=local_memory(stages, best_lag, best_depth),
                bytes_per_batch={
                    "up": [stage.up for stage in stages[:-1]],
                    "down": [stage.down for stage in stages[:-1]],
                },
                up=max(stage.up for stage in stages) / seconds,
                down=max(stage.down for stage in stages) / seconds,
                pipelines=_pipelines(profile, cluster, even.counts(blocks)),
            )
        )
    if not candidates:
        blocks, needed = min(too_large, key=lambda pair: pair[1])
        raise ValueError(
            f"machines.memory_gb={cluster.memory / 1e9:g}: must be at least {needed / 1e9:.3g}, "
            f"which {blocks} blocks on as many processes need"
        )
    return SearchResult(candidates, too_large)


def _tune(cluster: Cluster, stages: Sequence[StageEstimate], lag: int, depth: int) -> tuple[int, int, float, Forecast]:
    """Smallest lag, and then smallest depth, that are as fast as larger ones; less if these do not fit into memory.

    Returns lag, depth, seconds per batch, and the forecast of all stages.
    """
    blocks, bandwidth = len(stages), cluster.link.bandwidth
    slowest = max(range(blocks), key=lambda i: _pace(stages[i], bandwidth))
    first = max(0, min(slowest - _NEIGHBOURS // 2, blocks - _NEIGHBOURS))
    neighbours = stages[first : first + _NEIGHBOURS]
    batches = cluster.batches(2 * len(neighbours) + 48, slow=40, at_most=1000)
    least = lag, depth

    @cache
    def simulate(lag: int, depth: int) -> Forecast:
        return _forecast(
            "free", neighbours, cluster, batches, cluster.jitter(blocks, batches, first), lag=lag, depth=depth
        )

    def seconds(lag: int, depth: int) -> float:
        return simulate(lag, depth).seconds_per_batch

    while max(lag, depth) < _LARGEST and seconds(2 * lag, 2 * depth) < (1 - TOLERANCE) * seconds(lag, depth):
        lag, depth = 2 * lag, 2 * depth
    limit = seconds(lag, depth) / (1 - TOLERANCE)
    lag = bisect_left(range(lag), True, least[0], key=lambda fewer: seconds(fewer, depth) <= limit)
    depth = bisect_left(range(depth), True, least[1], key=lambda fewer: seconds(lag, fewer) <= limit)
    while max(local_memory(stages, lag, depth)) > cluster.memory:
        lag, depth = (lag, depth - 1) if depth > least[1] else (lag - 1, depth)
    whole = simulate(lag, depth)
    if blocks > _NEIGHBOURS:
        few = 16  # enough for the fill, and for a rate that is not below that of the neighbours
        whole = _forecast("free", stages, cluster, few, cluster.jitter(blocks, few), lag=lag, depth=depth)
    return lag, depth, max(whole.seconds_per_batch, seconds(lag, depth)), whole


def _pipelines(profile: ModelProfile, cluster: Cluster, counts: Sequence[int]) -> list[PipelineCandidate]:
    """Every schedule of `COMPARED` at the number of micro-batches that makes it fastest, if any fits into memory."""
    ranks = len(counts)
    batches = cluster.batches(2, slow=6, at_most=100)  # an update ends each batch, so that they are alike
    jitter = cluster.jitter(ranks, batches)
    candidates = []
    for schedule in COMPARED if ranks > 1 else ():
        best: PipelineCandidate | None = None
        for microbatches in microbatch_counts(schedule, ranks, ranks, profile.batch):
            stages = stages_of(backprop_stage(profile, cluster.speed, microbatches), counts)
            simulated = _forecast(schedule, stages, cluster, batches, jitter, microbatches=microbatches)
            memory = backprop_memory(stages, simulated.in_flight, microbatches)
            seconds = simulated.seconds_per_batch
            if max(memory) > cluster.memory:
                continue
            if best is not None and seconds > best.seconds_per_batch:
                break  # smaller parts fill the pipeline sooner, until their fixed costs outweigh that
            best = PipelineCandidate(
                schedule=schedule,
                microbatches=microbatches,
                cut=counts,
                seconds_per_batch=seconds,
                samples_per_second=profile.batch / seconds,
                memory=memory,
            )
        candidates += [best] if best else []
    return candidates


def _forecast(
    schedule: str,
    stages: Sequence[StageEstimate],
    cluster: Cluster,
    batches: int,
    jitter: Jitter | None,
    microbatches: int = 1,
    lag: int = 2,
    depth: int = 2,
) -> Forecast:
    """Forecast of ``stages``, a rank each; the last three arguments are those of `forecast` for the schedule."""
    return forecast(
        schedule,
        workload(stages),
        ranks=len(stages),
        batches=batches,
        link=cluster.link,
        jitter=jitter,
        overhead=cluster.overhead,
        microbatches=microbatches,
        lag=lag,
        depth=depth,
    )


def _pace(stage: StageEstimate, bandwidth: float) -> float:
    """Seconds between two batches that a stage and the edges above it need."""
    return max(stage.seconds, stage.up / bandwidth, stage.down / bandwidth)


def _block_counts(most: int, ranks: int) -> list[int]:
    """Numbers of blocks that are looked at."""
    if most <= _ALL_COUNTS:
        return list(range(1, most + 1))
    counts = [1]
    for n in range(2, most + 1):
        if n == most or (n >= _SPACING * counts[-1] and (not n & (n - 1) or ranks % n == 0)):
            counts.append(n)
    return counts


class PartitionTable:
    """Best partitions into 1 to ``max_blocks`` blocks; a table of 1,000 layers takes seconds, each partition less.

    Args:
        cost: Cost of a block of the layers ``start .. end - 1``, from ``start`` and ``end``; infinite if there is no
            such block.
        layers: Number of layers.
        max_blocks: Largest number of blocks.
    """

    def __init__(self, cost: Callable[[int, int], float], layers: int, max_blocks: int) -> None:
        assert 1 <= max_blocks <= layers
        self._costs: NDArray[np.float64] = np.full((layers, layers + 1), np.inf)
        for start in range(layers):
            self._costs[start, start + 1 :] = [cost(start, end) for end in range(start + 1, layers + 1)]
        best = self._costs[0]
        self._slowest = [best[layers]]
        for _ in range(1, max_blocks):
            best = np.minimum.reduce(np.maximum(best[:layers, None], self._costs))
            self._slowest.append(best[layers])

    def slowest(self, blocks: int) -> float:
        """Cost of the most expensive block of the best partition; infinite if there is no partition."""
        return float(self._slowest[blocks - 1])

    def counts(self, blocks: int) -> list[int]:
        """Layers of every block of the best partition.

        Among the partitions whose most expensive block is as cheap as possible, it is the one with the smallest sum of
        squares.
        """
        slowest, layers = self.slowest(blocks), len(self._costs)
        assert slowest < np.inf, "a partition that exists"
        squares = np.where(self._costs <= slowest * (1 + _EQUAL), np.square(self._costs), np.inf)
        best: NDArray[np.float64] = squares[0]
        starts: list[NDArray[Any]] = []
        for _ in range(1, blocks):
            sums = best[:layers, None] + squares
            starts.append(sums.argmin(0))
            best = np.minimum.reduce(sums)
        ends = [layers]
        for start in reversed(starts):
            ends.append(int(start[ends[-1]]))
        return [end - start for start, end in pairwise([0, *reversed(ends)])]
