"""Options of ``launch/bench.py``, and the context that every suite gets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from counterflow.bench.cases import CaseFactory
from counterflow.config.validators import at_least, size

SUITE_NAMES = ("cpu2", "emulated", "slowlink", "jitter", "transport", "memory", "scaling", "timeline", "flops")

_MAX_MS = 1e5


@dataclass(kw_only=True)
class StageOptions:
    """Milliseconds that an emulated block takes for an update batch. None: the default of the suite."""

    forward_ms: float | None = None
    backward_ms: float | None = None
    update_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("forward_ms", "backward_ms", "update_ms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _MAX_MS:
                raise ValueError(f"stage.{name}={value}: must be at least 0 and at most {_MAX_MS:g}")
        if self.forward_ms == self.backward_ms == 0:
            raise ValueError("stage.forward_ms=0: must be above 0 if stage.backward_ms is 0")

    def seconds(self, forward_ms: float, backward_ms: float, update_ms: float = 0.0) -> tuple[float, float, float]:
        """Seconds of forward, backward and update; the arguments are the defaults of the suite, in ms."""
        pairs = ((self.forward_ms, forward_ms), (self.backward_ms, backward_ms), (self.update_ms, update_ms))
        forward, backward, update = ((default if value is None else value) / 1e3 for value, default in pairs)
        return forward, backward, update


@dataclass(kw_only=True)
class LinkOptions:
    """The emulated link of ``suite=slowlink``, in both directions of every edge."""

    bandwidth_gbps: float = 1.0
    latency_ms: float = 10.0
    """One way."""
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
    """All options of ``launch/bench.py``."""

    suite: Any = "emulated"
    """A suite, a list of suites, or ``all``."""
    ranks: Any = None
    """A number of processes, or a list. None: the default of the suite."""
    microbatches: Any = None
    """A number of micro-batches that pipelines send of an update batch, or a list. None: the default of the suite."""
    repeats: int = 5
    """Rounds, in each of which every case runs once."""
    quick: bool = False
    """Fewer cases and rounds, for a first look: a minute or two."""
    out: str = "runs/bench"
    """Folder of ``bench.json``, ``bench.md`` and the charts."""
    stage: StageOptions = field(default_factory=StageOptions)
    link: LinkOptions = field(default_factory=LinkOptions)

    def __post_init__(self) -> None:
        for name in self.suites:
            if name not in SUITE_NAMES:
                raise ValueError(f"suite={name}: allowed are all, {', '.join(SUITE_NAMES)}, and lists of them")
        at_least("repeats", self.repeats, 1)
        for key in ("ranks", "microbatches"):
            numbers = self.numbers(key, [1])
            if not numbers or not all(type(number) is int and 1 <= number <= 256 for number in numbers):
                raise ValueError(
                    f"{key}={getattr(self, key)}: allowed are whole numbers of 1 to 256, and lists of them"
                )

    @property
    def suites(self) -> list[Any]:
        return list(SUITE_NAMES) if self.suite == "all" else _as_list(self.suite)

    def numbers(self, key: str, default: list[int]) -> list[int]:
        """The values of ``ranks`` or ``microbatches``; ``default`` if the option is not set."""
        value = getattr(self, key)
        return default if value is None else _as_list(value)

    @property
    def rounds(self) -> int:
        return min(self.repeats, 3) if self.quick else self.repeats


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


@dataclass(frozen=True)
class BenchContext:
    """The options of a run and its surroundings, as a suite gets them."""

    options: BenchOptions
    cases: CaseFactory
    out: Path
    """Folder of charts that a suite draws while it measures."""
    log: Callable[[str], None]
    """Shows one line of progress."""


ConfigStore.instance().store(name="bench_schema", node=BenchOptions)
