"""Options of ``launch/plan.py``: those of a run, and the machines that it is planned for."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from hydra.core.config_store import ConfigStore

from counterflow.algorithms import ALGORITHMS
from counterflow.config import TrainConfig
from counterflow.config.validators import fraction, one_of, size
from counterflow.schedule.forecast import LinkSpec

_LARGEST = 1e6
"""Largest latency and overhead in milliseconds, and largest jitter factor."""


@dataclass(kw_only=True)
class Cluster:
    """Machines of a plan: equal processes, with an edge between neighbours in each direction."""

    ranks: int = 4
    """Largest number of processes."""
    speed: float = 1.0
    """Speed of a process, as a multiple of this machine's."""
    memory_gb: float | None = None
    """Memory of a process for parameters, activations and messages, in 10^9 bytes; null: unlimited."""
    bandwidth_gbps: float | None = None
    """Bandwidth of an edge, in 10^9 bits per second; null: unlimited."""
    latency_ms: float = 0.0
    """Time from the end of a send to the arrival."""
    overhead_ms: float = 0.0
    """Time of a process for every action of its block (target, forward pass, update) besides the computation."""
    jitter_share: float = 0.0
    """Share of all batches for which one process, drawn at random, is slow."""
    jitter_factor: float = 3.0
    """Factor by which that process is slower."""

    def __post_init__(self) -> None:
        size("machines.ranks", self.ranks, 1)
        for key in ("speed", "memory_gb", "bandwidth_gbps"):
            value: float | None = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"machines.{key}={value}: must be greater than 0")
        for key, least in (("latency_ms", 0), ("overhead_ms", 0), ("jitter_factor", 1)):
            if not least <= getattr(self, key) <= _LARGEST:
                raise ValueError(
                    f"machines.{key}={getattr(self, key)}: must be at least {least} and at most {_LARGEST:g}"
                )
        fraction("machines.jitter_share", self.jitter_share)

    @property
    def memory(self) -> float:
        """Bytes of a process."""
        return math.inf if self.memory_gb is None else 1e9 * self.memory_gb

    @property
    def link(self) -> LinkSpec:
        bandwidth = math.inf if self.bandwidth_gbps is None else 1e9 / 8 * self.bandwidth_gbps
        return LinkSpec(self.latency_ms / 1e3, bandwidth)

    @property
    def overhead(self) -> float:
        """Seconds of a process for every action."""
        return self.overhead_ms / 1e3

    def batches(self, steady: int, slow: int, at_most: int) -> int:
        """Number of batches to simulate: ``steady``, and with jitter as many more as hold ``slow`` slow batches.

        Args:
            steady: Batches without jitter.
            slow: Slow batches that are wanted.
            at_most: Largest number of batches for them.
        """
        return steady + (min(at_most, int(slow / self.jitter_share)) if self.jitter_share else 0)

    def jitter(self, blocks: int, batches: int, first: int = 0) -> Callable[[int, int], float] | None:
        """Factors by which block and batch take longer, or None without jitter.

        Slow batches are drawn at random, the same in every call. They come to all blocks in turn, in random orders, so
        that no block of a plan is slow more often than another one by chance.

        Args:
            blocks: Blocks of the network.
            batches: Batches of the simulation.
            first: Number of blocks below the simulated ones.
        """
        if not self.jitter_share:
            return None
        draw = random.Random(0)
        slow: dict[int, int] = {}
        turns: list[int] = []
        for n in range(batches):
            if draw.random() < self.jitter_share:
                turns = turns or draw.sample(range(1, blocks + 1), blocks)
                slow[n] = turns.pop()
        return lambda block, n: self.jitter_factor if slow.get(n) == block + first else 1.0


@dataclass(kw_only=True)
class OutputConfig:
    out: str | None = None
    """File to which the plan is written as JSON."""


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    """A run without ``blocks`` and ``model.cut``, which the plan finds. ``engine.lag`` and ``engine.depth`` are the
    smallest ones that it considers."""

    blocks: int = 1
    machines: Cluster = field(default_factory=Cluster)
    plan: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm", self.algorithm.name, ALGORITHMS)  # end-to-end references have a lock
        if self.blocks != 1:
            raise ValueError(f"blocks={self.blocks}: is what the plan finds, allowed is 1; machines.ranks= bounds it")
        if self.model.cut != "flops":
            raise ValueError(f"model.cut={self.model.cut}: is what the plan finds, allowed is flops")
        if self.engine.lag == "exact":
            raise ValueError("engine.lag=exact: runs on one process, allowed are whole numbers of at least 1")
        if self.engine.target_depth is not None:
            raise ValueError(f"engine.target_depth={self.engine.target_depth}: is the lag of a plan, allowed is null")

    def training(self, threads: int) -> TrainConfig:
        """Configuration of the run itself, with ``threads`` threads per process."""
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**given, "engine": replace(self.engine, threads=threads)})


ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
