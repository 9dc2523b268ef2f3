"""Which number of blocks, which cut, which lag and depth: from a measured network and the machines, without a clock."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean

from counterflow.planner.cuts import Cuts
from counterflow.planner.machines import Machines
from counterflow.planner.network import Network
from counterflow.planner.pipelines import Pipelined, even, pipelines
from counterflow.planner.stages import Stage, cut, load, local, local_memory
from counterflow.schedule.forecast import Forecast, forecast

TOLERANCE = 0.01
"""What is slower by less is as fast."""
_EVERY = 16
"""So many ranks are planned one by one; of more, powers of two and what divides them, unless they are close."""
_CLOSE = 1.5
_WINDOW = 32
"""Lag and depth are those that so many stages around the slowest one need: a target only ever waits for neighbours."""
_STEADY = 48
"""Batches beyond the fill that are simulated."""
_FEW = 16
"""Batches of a simulation that is about the fill alone."""
_SLOW = 40
"""Slow batches that are simulated, where there are any."""
_MOST_BATCHES = 1000
_LARGEST = 2048
"""Of lag and depth."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What is predicted for one number of blocks, a process each."""

    blocks: int
    cut: Sequence[int]
    lag: int
    depth: int
    seconds_per_batch: float
    samples_per_second: float
    speed_up: float
    """Over one process."""
    wait_fraction: float
    """Of all ranks, the mean."""
    fill_seconds: float
    """Until the top block has its first activation."""
    memory: Sequence[int]
    """Bytes of every rank."""
    up: float
    """Bytes a second over the busiest edge."""
    down: float
    pipelines: Sequence[Pipelined] = ()
    """The same processes under pipelines of backprop, each at its best number of micro-batches."""


@dataclass(frozen=True)
class RunPlan:
    rows: Sequence[StepMetrics]
    refused: Sequence[tuple[int, int]]
    """Numbers of blocks that do not fit into memory, with what their largest process needs, in bytes."""

    @property
    def best(self) -> StepMetrics:
        """The smallest of those that are as fast as any."""
        best_of = min(row.seconds_per_batch for row in self.rows)
        return next(row for row in self.rows if row.seconds_per_batch * (1 - TOLERANCE) <= best_of)


def plan(network: Network, machines: Machines, lag: int, depth: int, log: Callable[[str], None]) -> RunPlan:
    """For every number of blocks that is worth a look; ``lag`` and ``depth`` are the smallest that are considered.

    Raises ``ValueError`` if nothing fits into the memory of the machines.
    """
    layers = len(network.layers)
    most = min(machines.ranks, layers)
    stage = local(network, machines.speed)

    def cost(start: int, end: int) -> float:
        one = stage(start, end)
        least = one.states + one.kept
        return _slowest(one, machines) if least <= machines.memory else float("inf")

    log("cuts")
    cuts, others = Cuts(cost, layers, most), even(network, most)
    alone = stage(0, layers).seconds
    rows, refused, best_of = [], [], float("inf")
    for blocks in _numbers(most, machines.ranks):
        if cuts.slowest(blocks) == float("inf"):
            refused.append((blocks, _least_memory(stage, network, blocks, lag, depth)))
            continue
        if most > _EVERY and cuts.slowest(blocks) > (1 - TOLERANCE) * best_of:
            continue  # more processes, and none of them has less to do
        log(f"{blocks} blocks")
        row = _row(network, machines, cut(stage, counts := cuts.counts(blocks)), counts, lag, depth, alone)
        if isinstance(row, int):
            refused.append((blocks, row))
            continue
        best_of = min(best_of, cuts.slowest(blocks))
        log(f"{blocks} blocks under pipelines of backprop")
        rows.append(replace(row, pipelines=pipelines(network, machines, others.counts(blocks))))
    if not rows:
        blocks, least = min(refused, key=lambda pair: pair[1])
        raise ValueError(
            f"machines.memory_gb={machines.memory / 1e9:g}: must be at least {least / 1e9:.3g}, "
            f"which {blocks} blocks on as many processes need"
        )
    return RunPlan(rows, refused)


def _row(
    network: Network,
    machines: Machines,
    stages: Sequence[Stage],
    counts: Sequence[int],
    lag: int,
    depth: int,
    one: float,
) -> StepMetrics | int:
    """The memory that is needed, if there is less."""
    least = max(local_memory(stages, lag, depth))
    if least > machines.memory:
        return least
    around = _around(stages, machines)
    lag, depth = _smallest(stages, machines, lag, depth, around)
    found = whole = around(lag, depth)
    if len(stages) > _WINDOW:
        whole = _simulate(stages, machines, lag, depth, _FEW, 0, len(stages))
    seconds = max(whole.seconds_per_batch, found.seconds_per_batch)
    return StepMetrics(
        blocks=len(stages),
        cut=counts,
        lag=lag,
        depth=depth,
        seconds_per_batch=seconds,
        samples_per_second=network.batch / seconds,
        speed_up=one / seconds,
        wait_fraction=mean(whole.wait_fraction),
        fill_seconds=whole.fill,
        memory=local_memory(stages, lag, depth),
        up=max(stage.up for stage in stages) / seconds,
        down=max(stage.down for stage in stages) / seconds,
    )


def _smallest(
    stages: Sequence[Stage], machines: Machines, lag: int, depth: int, around: Callable[[int, int], Forecast]
) -> tuple[int, int]:
    """The smallest lag, and then the smallest depth, with which they are as fast as with any; less where these do not
    fit into memory."""
    least = lag, depth

    def seconds(lag: int, depth: int) -> float:
        return around(lag, depth).seconds_per_batch

    def fits(lag: int, depth: int) -> bool:
        return max(local_memory(stages, lag, depth)) <= machines.memory

    while max(lag, depth) < _LARGEST and seconds(2 * lag, 2 * depth) < (1 - TOLERANCE) * seconds(lag, depth):
        lag, depth = 2 * lag, 2 * depth
    limit = seconds(lag, depth) / (1 - TOLERANCE)
    lag = bisect_left(range(lag), True, least[0], key=lambda fewer: seconds(fewer, depth) <= limit)
    depth = bisect_left(range(depth), True, least[1], key=lambda fewer: seconds(lag, fewer) <= limit)
    while not fits(lag, depth):
        lag, depth = (lag, depth - 1) if depth > least[1] else (lag - 1, depth)
    return lag, depth


def _around(stages: Sequence[Stage], machines: Machines) -> Callable[[int, int], Forecast]:
    """Of the stages around the slowest one, as a function of lag and depth."""
    slowest = max(range(len(stages)), key=lambda i: _slowest(stages[i], machines))
    first = max(0, min(slowest - _WINDOW // 2, len(stages) - _WINDOW))
    window = stages[first : first + _WINDOW]
    batches = 2 * len(window) + _STEADY
    if machines.jitter_share:
        batches += min(_MOST_BATCHES, int(_SLOW / machines.jitter_share))

    @cache
    def around(lag: int, depth: int) -> Forecast:
        return _simulate(window, machines, lag, depth, batches, first, len(stages))

    return around


def _simulate(
    stages: Sequence[Stage], machines: Machines, lag: int, depth: int, batches: int, first: int, blocks: int
) -> Forecast:
    """Of ``stages``, the lowest of which is block ``first + 1`` of ``blocks``."""
    return forecast(
        "free",
        load(stages),
        ranks=len(stages),
        batches=batches,
        lag=lag,
        depth=depth,
        link=machines.link,
        jitter=machines.jitter(blocks, batches, first),
        overhead=machines.overhead,
        keep=False,
    )


def _slowest(stage: Stage, machines: Machines) -> float:
    """Seconds between two batches that a stage and the edges above it need."""
    return max(stage.seconds, stage.up / machines.link.bandwidth, stage.down / machines.link.bandwidth)


def _least_memory(stage: Callable[[int, int], Stage], network: Network, blocks: int, lag: int, depth: int) -> int:
    """What the largest process needs if the cut is the one that makes it smallest."""
    layers = len(network.layers)

    def cost(start: int, end: int) -> float:
        one = stage(start, end)
        return one.states + one.kept

    return max(local_memory(cut(stage, Cuts(cost, layers, blocks).counts(blocks)), lag, depth))


def _numbers(most: int, ranks: int) -> list[int]:
    """Numbers of blocks that are looked at."""
    if most <= _EVERY:
        return list(range(1, most + 1))
    found = [1]
    for n in range(2, most + 1):
        if n == most or (n >= _CLOSE * found[-1] and (not n & (n - 1) or ranks % n == 0)):
            found.append(n)
    return found
