"""Options of runs with several replicas of the pipeline."""

from dataclasses import dataclass

from counterflow.config.validators import Options, at_least, checked, fraction, one_of, rate, size


@dataclass(kw_only=True)
class SyncConfig(Options, key="sync"):
    """Meetings of the copies of a block in several replicas."""

    mode: str = checked("gradients", one_of, ("gradients", "parameters"))
    """``gradients``: all step by the mean of their gradients after every batch. ``parameters``: each learns alone, and
    every so many batches they move towards the mean of their weights."""
    every: int = checked(1, size, 1)
    """Batches between two meetings (``mode=parameters`` only)."""
    delay: int = checked(0, at_least, 0)
    """Batches that go on until the mean takes effect, while it travels (``mode=parameters`` only)."""
    outer_lr: float = checked(1.0, rate)
    """Learning rate of the outer copy of the weights, along the way to their mean (``mode=parameters`` only)."""
    outer_momentum: float = checked(0.0, fraction)
    """Nesterov's momentum of the outer copy (``mode=parameters`` only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "gradients":
            allowed: dict[str, float] = {"every": 1, "delay": 0, "outer_lr": 1, "outer_momentum": 0}
            for name, default in allowed.items():
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"sync.{name}={value:g}: allowed for sync.mode=gradients is {default:g}")
        if self.delay >= self.every:
            raise ValueError(f"sync.delay={self.delay}: must be less than sync.every={self.every}")


@dataclass(kw_only=True)
class TopologyConfig(Options, key="topology"):
    inner: str = checked("pipeline", one_of, ("pipeline", "replicas"))
    """Which pieces of several replicas are neighbours on the ranks: the blocks of a pipeline, or the copies of a block.
    No bit depends on it."""
