"""The options of ``launch/plan.py``: those of a run, and the machines that it is planned for."""

import math
from dataclasses import dataclass, field, fields, replace

from hydra.core.config_store import ConfigStore

from counterflow.algorithms import ALGORITHMS
from counterflow.config import TrainConfig
from counterflow.config.validators import fraction, one_of, size


@dataclass(kw_only=True)
class MachinesConfig:
    ranks: int = 4
    """Processes that there may be, at most."""
    speed: float = 1.0
    """Of each, as a multiple of this machine's."""
    memory_gb: float | None = None
    """Of each, in 10^9 bytes, for parameters, activations and messages; by default whatever it takes."""
    bandwidth_gbps: float | None = None
    """Of every edge in each direction, in 10^9 bits a second; by default nothing waits for it."""
    latency_ms: float = 0.0
    """From the end of a send to the receipt."""
    overhead_ms: float = 0.0
    """Of a process for every action of its block (a target, a forward pass, an update), beside what that computes."""
    jitter_share: float = 0.0
    """In this share of all batches, one process drawn at random is slow."""
    jitter_factor: float = 3.0
    """So many times as slow."""

    def __post_init__(self) -> None:
        size("machines.ranks", self.ranks, 1)
        _positive("machines.speed", self.speed)
        _positive("machines.memory_gb", self.memory_gb)
        _positive("machines.bandwidth_gbps", self.bandwidth_gbps)
        for key in ("latency_ms", "overhead_ms"):
            if not 0 <= getattr(self, key) <= _MOST:
                raise ValueError(f"machines.{key}={getattr(self, key)}: must be at least 0 and at most {_MOST:g}")
        fraction("machines.jitter_share", self.jitter_share)
        if not 1 <= self.jitter_factor <= _MOST:
            raise ValueError(f"machines.jitter_factor={self.jitter_factor}: must be at least 1 and at most {_MOST:g}")

    @property
    def bytes_per_second(self) -> float:
        return math.inf if self.bandwidth_gbps is None else 1e9 / 8 * self.bandwidth_gbps

    @property
    def memory(self) -> float:
        """Bytes."""
        return math.inf if self.memory_gb is None else 1e9 * self.memory_gb


@dataclass(kw_only=True)
class OutputConfig:
    out: str | None = None
    """File that takes the plan as JSON."""


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    """A run without ``blocks`` and ``model.cut``, which the plan finds. ``engine.lag`` and ``engine.depth`` are the
    smallest ones that it considers."""

    blocks: int = 1
    machines: MachinesConfig = field(default_factory=MachinesConfig)
    plan: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm", self.algorithm.name, ALGORITHMS)  # the others have a lock, and stand beside these
        if self.blocks != 1:
            raise ValueError(f"blocks={self.blocks}: is what the plan finds, allowed is 1; machines.ranks= bounds it")
        if self.model.cut != "flops":
            raise ValueError(f"model.cut={self.model.cut}: is what the plan finds, allowed is flops")
        if self.engine.lag == "exact":
            raise ValueError("engine.lag=exact: runs on one process, allowed are whole numbers of at least 1")
        if self.engine.target_depth is not None:
            raise ValueError(f"engine.target_depth={self.engine.target_depth}: is the lag of a plan, allowed is null")

    def training(self, threads: int) -> TrainConfig:
        """The run itself, on so many threads a process."""
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**given, "engine": replace(self.engine, threads=threads)})


_MOST = 1e6


def _positive(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{key}={value}: must be greater than 0")


ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
