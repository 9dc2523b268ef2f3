"""The options of ``launch/bench.py``."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from counterflow.config.validators import at_least, size

SUITES = ("cpu2", "emulated", "slowlink", "jitter", "transport", "memory", "scaling", "timeline", "flops")

_LONGEST = 1e5
"""Milliseconds."""


@dataclass(kw_only=True)
class StageOptions:
    """What an emulated block takes for an update batch, in milliseconds; by default what the suite is about."""

    forward_ms: float | None = None
    backward_ms: float | None = None
    update_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("forward_ms", "backward_ms", "update_ms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _LONGEST:
                raise ValueError(f"stage.{name}={value}: must be at least 0 and at most {_LONGEST:g}")
        if self.forward_ms == self.backward_ms == 0:
            raise ValueError("stage.forward_ms=0: must be above 0 if stage.backward_ms is 0")

    def seconds(self, forward_ms: float, backward_ms: float, update_ms: float = 0.0) -> tuple[float, float, float]:
        """Of forward, backward and update, with a suite's defaults."""
        wanted = ((self.forward_ms, forward_ms), (self.backward_ms, backward_ms), (self.update_ms, update_ms))
        forward, backward, update = ((default if value is None else value) / 1e3 for value, default in wanted)
        return forward, backward, update


@dataclass(kw_only=True)
class LinkOptions:
    """The emulated link of ``suite=slowlink``, in both directions of every edge."""

    bandwidth_gbps: float = 1.0
    latency_ms: float = 10.0
    activation_kb: int = 1536
    """Kilobytes of an activation message."""

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth_gbps <= 1000:
            raise ValueError(f"link.bandwidth_gbps={self.bandwidth_gbps}: must be above 0 and at most 1000")
        if not 0 <= self.latency_ms <= 10000:
            raise ValueError(f"link.latency_ms={self.latency_ms}: must be at least 0 and at most 10000")
        size("link.activation_kb", self.activation_kb, 1)


@dataclass(kw_only=True)
class BenchOptions:
    suite: Any = "emulated"
    """One of them, a list of them, or ``all``."""
    ranks: Any = None
    """A number of processes, or a list of them; by default what the suite is about."""
    microbatches: Any = None
    """The same for the parts of an update batch that pipelines send; by default what the suite is about."""
    repeats: int = 5
    """Rounds, in each of which every contender runs once."""
    quick: bool = False
    """Fewer contenders and rounds, for a first look: a minute or two."""
    out: str = "runs/bench"
    """Folder of ``bench.json`` and the figures."""
    stage: StageOptions = field(default_factory=StageOptions)
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        for name in self.suites:
            if name not in SUITES:
                raise ValueError(f"suite={name}: allowed are all, {', '.join(SUITES)}, and lists of them")
        at_least("repeats", self.repeats, 1)
        for key in ("ranks", "microbatches"):
            numbers = self.numbers(key, [1])
            if not numbers or not all(type(number) is int and 1 <= number <= 256 for number in numbers):
                raise ValueError(
                    f"{key}={getattr(self, key)}: allowed are whole numbers of 1 to 256, and lists of them"
                )

    @property
    def suites(self) -> list[Any]:
        if self.suite == "all":
            return list(SUITES)
        return list(self.suite) if isinstance(self.suite, list) else [self.suite]

    def numbers(self, key: str, default: list[int]) -> list[int]:
        """The values of ``ranks`` or ``microbatches``."""
        value = getattr(self, key)
        if value is None:
            return default
        return list(value) if isinstance(value, list) else [value]

    @property
    def rounds(self) -> int:
        return min(self.repeats, 3) if self.quick else self.repeats


ConfigStore.instance().store(name="bench_schema", node=BenchOptions)
