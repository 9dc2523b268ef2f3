"""Options of ``launch/plan.py``: those of a run, and the machines that it is planned for."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from hydra.core.config_store import ConfigStore

from counterflow.algorithms import ALGORITHMS
from counterflow.config import TrainConfig
from counterflow.config.validators import Options, checked, fraction, one_of, size
from counterflow.schedule.forecast import LinkSpec

_LARGEST = 1e6
"""Largest latency and overhead in milliseconds, and largest jitter factor."""


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key}={value}: must be greater than 0")


def _within(key: str, value: float, least: int) -> None:
    if not least <= value <= _LARGEST:
        raise ValueError(f"{key}={value}: must be at least {least} and at most {_LARGEST:g}")


@dataclass(kw_only=True)
class Cluster(Options, key="machines"):
    """Machines of a plan: equal processes, with an edge between neighbours in each direction."""

    ranks: int = checked(4, size, 1)
    """Largest number of processes."""
    speed: float = checked(1.0, _positive)
    """Speed of a process, as a multiple of this machine's."""
    memory_gb: float | None = checked(None, _positive)
    """Memory of a process for parameters, activations and messages, in 10^9 bytes; null: unlimited."""
    bandwidth_gbps: float | None = checked(None, _positive)
    """Bandwidth of an edge, in 10^9 bits per second; null: unlimited."""
    latency_ms: float = checked(0.0, _within, 0)
    """Time from the end of a send to the arrival."""
    overhead_ms: float = checked(0.0, _within, 0)
    """Time of a process for every action of its block (target, forward pass, update) besides the computation."""
    jitter_share: float = checked(0.0, fraction)
    """Share of all batches for which one process, drawn at random, is slow."""
    jitter_factor: float = checked(3.0, _within, 1)
    """Factor by which that process is slower."""

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
        lag, target_depth = self.engine.lag, self.engine.target_depth
        for option, refused, reason in (
            (
                f"blocks={self.blocks}",
                self.blocks != 1,
                "is what the plan finds, allowed is 1; machines.ranks= bounds it",
            ),
            (f"model.cut={self.model.cut}", self.model.cut != "flops", "is what the plan finds, allowed is flops"),
            (f"engine.lag={lag}", lag == "exact", "runs on one process, allowed are whole numbers of at least 1"),
            (f"engine.target_depth={target_depth}", target_depth is not None, "is the lag of a plan, allowed is null"),
        ):
            if refused:
                raise ValueError(f"{option}: {reason}")

    def training(self, threads: int) -> TrainConfig:
        """Configuration of the run itself, with ``threads`` threads per process."""
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**given, "engine": replace(self.engine, threads=threads)})


ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
