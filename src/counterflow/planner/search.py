"""Search for the number of blocks, the partition, the lag, the depth and the wire of a run, on a profile and without a
clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean

from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import (
    ModelProfile,
    backprop_memory,
    backprop_stage,
    local_stage,
    stages_of,
    workload,
)
from counterflow.planner.options import Cluster
from counterflow.planner.partition_table import PartitionTable
from counterflow.planner.setting import TOLERANCE, Setting, Tuned, pace
from counterflow.schedule.forecast import forecast
from counterflow.schedule.pipeline_schedules import microbatch_counts

COMPARED = ("gpipe", "1f1b")
"""Pipelines of backprop that each candidate is compared with."""
_ALL_COUNTS = 16
"""Largest number of ranks for which every number of blocks is a candidate; beyond, powers of two and divisors are."""
_SPACING = 1.5
"""Smallest ratio of two such numbers of blocks."""


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
class Trial:
    """One wire and one placement of a number of blocks, at the best lag and depth."""

    wire: str
    inner: str
    lag: int
    depth: int
    seconds_per_batch: float
    least: float
    """Seconds per batch at the smallest lag and depth that are allowed."""
    computing: float
    """Seconds that the slowest block computes for a batch."""
    sending: float
    """Seconds that the busiest link carries what belongs to a batch."""
    crossing: Mapping[str, float]
    """Bytes of a batch between nodes, for each of the streams."""


@dataclass(frozen=True, kw_only=True)
class Candidate(Prediction):
    """Prediction for one number of blocks."""

    blocks: int
    processes: int
    """One for every block of every replica."""
    nodes: int
    wire: str
    inner: str
    lag: int
    depth: int
    speed_up: float
    """Ratio to one process with one pipeline."""
    wait_fraction: float
    """Mean over all ranks."""
    fill_seconds: float
    """Seconds until the top block has its first activation."""
    bytes_per_batch: Mapping[str, Sequence[float]]
    """``up`` and ``down``: bytes over every edge between blocks of a replica, bottom to top, for a batch. With several
    replicas also ``sync``: bytes that a copy of each block sends to all others, a mean over batches."""
    up: float
    """Bytes per second over the busiest edge."""
    down: float
    trials: Sequence[Trial]
    """All wires and placements that were simulated."""
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


def search(
    profiles: Mapping[str, ModelProfile],
    cluster: Cluster,
    local: LocalRun,
    replicas: int,
    log: Callable[[str], None],
) -> SearchResult:
    """Predict every number of blocks that may pay.

    Args:
        profiles: Costs of the model's layers by ``engine.wire``, the most exact one first.
        cluster: Machines.
        local: Options of the run; of lag and depth the smallest ones to consider.
        replicas: Copies of the pipeline.
        log: Called with every step.

    Raises:
        ValueError: No number of blocks fits into the memory or on the nodes of the machines.
    """
    profile = next(iter(profiles.values()))
    layers = len(profile.layers)
    most = min(cluster.ranks // replicas, layers)
    assert most > 0, "a process for every replica"
    log("cuts")
    cuts = {wire: _Cuts(one, cluster, local, replicas, most) for wire, one in profiles.items()}
    backprop = backprop_stage(profile, 1.0, 1)
    even = PartitionTable(lambda start, end: backprop(start, end).seconds, layers, most)
    alone = replicas * local_stage(profile, cluster.speed)(0, layers).seconds
    exact = next(iter(cuts.values()))
    candidates: list[Candidate] = []
    too_large: list[tuple[int, int]] = []
    best_of = inf
    for blocks in _block_counts(most, cluster.ranks):
        per_node = cluster.processes_per_node(blocks * replicas)
        if per_node is None:
            continue
        slowest = exact.fits.slowest(blocks)
        if most > _ALL_COUNTS and (1 - TOLERANCE) * best_of < slowest < inf:
            continue  # more processes, and none of them has less to do
        needed = exact.setting(blocks, "pipeline", per_node).memory(local.lag, local.depth)
        if max(needed) > cluster.memory:
            too_large.append((blocks, max(needed)))
            continue
        best_of = min(best_of, slowest)
        log(f"{blocks} blocks")
        wire, setting, tuned, trials = _chosen(cuts, blocks, per_node)
        stages, seconds = setting.stages, tuned.seconds_per_batch
        log(f"{blocks} blocks under pipelines of backprop")
        candidates.append(
            Candidate(
                blocks=blocks,
                processes=blocks * replicas,
                nodes=setting.nodes,
                wire=wire,
                inner=setting.inner,
                cut=cuts[wire].counts(blocks),
                lag=tuned.lag,
                depth=tuned.depth,
                seconds_per_batch=seconds,
                samples_per_second=profile.batch / seconds,
                speed_up=alone / seconds,
                wait_fraction=mean(tuned.forecast.wait_fraction),
                fill_seconds=tuned.forecast.fill,
                memory=setting.memory(tuned.lag, tuned.depth),
                bytes_per_batch=_bytes_per_batch(setting),
                up=max(stage.up for stage in stages) / seconds,
                down=max(stage.down for stage in stages) / seconds,
                trials=trials,
                pipelines=_pipelines(profiles[wire], cluster, even.counts(blocks)) if replicas == 1 else (),
            )
        )
    if not candidates:
        raise ValueError(_nothing_fits(too_large, cluster, replicas))
    return SearchResult(candidates, too_large)


def _nothing_fits(too_large: Sequence[tuple[int, int]], cluster: Cluster, replicas: int) -> str:
    if not too_large:
        return f"machines.nodes={cluster.nodes}: no number of blocks of replicas={replicas} is shared out evenly"
    blocks, needed = min(too_large, key=lambda pair: pair[1])
    return (
        f"machines.memory_gb={cluster.memory / 1e9:g}: must be at least {needed / 1e9:.3g}, "
        f"which {blocks} blocks on as many processes need"
    )


class _Cuts:
    """Best cuts of a profile into any number of blocks, as if all edges were between nodes."""

    def __init__(
        self, profile: ModelProfile, cluster: Cluster, local: LocalRun, replicas: int, max_blocks: int
    ) -> None:
        self._stage, self._layers = local_stage(profile, cluster.speed), len(profile.layers)
        self.cluster, self.local, self.replicas = cluster, local, replicas
        self._bandwidth = cluster.link.bandwidth
        self.fits = PartitionTable(self._pace, self._layers, max_blocks)

    def _memory(self, start: int, end: int) -> float:
        block = self._stage(start, end)
        return block.states + block.kept

    def _pace(self, start: int, end: int) -> float:
        fits = self._memory(start, end) <= self.cluster.memory
        return pace(self._stage(start, end), self._bandwidth) if fits else inf

    def counts(self, blocks: int) -> list[int]:
        """Layers of each block: of the cut with the fastest slowest block or edge, or with the least memory."""
        fits = self.fits.slowest(blocks) < inf
        return (self.fits if fits else PartitionTable(self._memory, self._layers, blocks)).counts(blocks)

    def setting(self, blocks: int, inner: str, per_node: int) -> Setting:
        stages = stages_of(self._stage, self.counts(blocks))
        return Setting(self.cluster, stages, self.local, self.replicas, inner, per_node)


def _chosen(cuts: Mapping[str, _Cuts], blocks: int, per_node: int) -> tuple[str, Setting, Tuned, list[Trial]]:
    """The most exact wire that is as fast as smaller ones, and the placement with the fewest bytes between nodes that
    is as fast as the other one."""
    found: list[tuple[Trial, Setting, Tuned]] = []
    for wire, cut in cuts.items():
        several = cut.replicas > 1 and blocks > 1 and blocks * cut.replicas > per_node
        for inner in ("pipeline", "replicas") if several else ("pipeline",):
            setting = cut.setting(blocks, inner, per_node)
            if max(setting.memory(cut.local.lag, cut.local.depth)) > cut.cluster.memory:
                continue
            tuned = setting.tuned()
            trial = Trial(
                wire=wire,
                inner=inner,
                lag=tuned.lag,
                depth=tuned.depth,
                seconds_per_batch=tuned.seconds_per_batch,
                least=tuned.least,
                computing=setting.computing,
                sending=setting.sending,
                crossing=setting.crossing_bytes,
            )
            found.append((trial, setting, tuned))
        if any(trial.seconds_per_batch * (1 - TOLERANCE) <= trial.computing for trial, _, _ in found):
            break  # the blocks are what takes longest, and smaller messages do not change that
    limit = min(trial.seconds_per_batch for trial, _, _ in found) / (1 - TOLERANCE)
    fast = [one for one in found if one[0].seconds_per_batch <= limit]
    same_wire = [one for one in fast if one[0].wire == fast[0][0].wire]
    trial, setting, tuned = min(same_wire, key=lambda one: sum(one[0].crossing.values()))
    return trial.wire, setting, tuned, [trial for trial, _, _ in found]


def _bytes_per_batch(setting: Setting) -> dict[str, list[float]]:
    stages, replicas = setting.stages, setting.replicas
    found: dict[str, list[float]] = {
        "up": [stage.up for stage in stages[:-1]],
        "down": [stage.down for stage in stages[:-1]],
    }
    if replicas > 1:
        share = 2 * (replicas - 1) / replicas / setting.local.every
        found["sync"] = [share * stage.parameters for stage in stages]
    return found


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
            simulated = forecast(
                schedule,
                workload(stages),
                ranks=ranks,
                batches=batches,
                microbatches=microbatches,
                link=cluster.link,
                jitter=jitter,
                overhead=cluster.overhead,
            )
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


def _block_counts(most: int, ranks: int) -> list[int]:
    """Numbers of blocks that are looked at."""
    if most <= _ALL_COUNTS:
        return list(range(1, most + 1))
    counts = [1]
    for n in range(2, most + 1):
        if n == most or (n >= _SPACING * counts[-1] and (not n & (n - 1) or ranks % n == 0)):
            counts.append(n)
    return counts
