"""Options of ``launch/bench.py``, and the context that every suite gets."""

# ruff: noqa: RUF009  # `checked` makes a field

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from counterflow.bench.cases import CaseFactory
from counterflow.config.validators import Options, at_least, checked, one_of, positive, size

SUITE_NAMES = (
    *("cpu2", "emulated", "slowlink", "jitter", "transport", "memory", "scaling", "timeline", "flops", "loader"),
    *("replicas", "time_to_accuracy", "wan"),
)


def _duration(key: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{key}={value}: must be at least 0 and at most {most:g}")


def _suites(key: str, value: Any) -> None:
    for name in _as_list(value):
        if name not in SUITE_NAMES and value != "all":
            raise ValueError(f"{key}={name}: allowed are all, {', '.join(SUITE_NAMES)}, and lists of them")


def _counts(key: str, value: Any) -> None:
    numbers = _as_list(value)
    if not numbers or not all(type(number) is int and 1 <= number <= 256 for number in numbers):
        raise ValueError(f"{key}={value}: allowed are whole numbers of 1 to 256, and lists of them")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


@dataclass(kw_only=True)
class StageOptions(Options, key="stage"):
    """Milliseconds that an emulated block takes for an update batch. None: the default of the suite."""

    forward_ms: float | None = checked(None, _duration, 1e5)
    backward_ms: float | None = checked(None, _duration, 1e5)
    update_ms: float | None = checked(None, _duration, 1e5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forward_ms == self.backward_ms == 0:
            raise ValueError("stage.forward_ms=0: must be above 0 if stage.backward_ms is 0")

    def seconds(self, forward_ms: float, backward_ms: float, update_ms: float = 0.0) -> tuple[float, float, float]:
        """Seconds of forward, backward and update; the arguments are the defaults of the suite, in ms."""
        pairs = ((self.forward_ms, forward_ms), (self.backward_ms, backward_ms), (self.update_ms, update_ms))
        forward, backward, update = ((default if value is None else value) / 1e3 for value, default in pairs)
        return forward, backward, update


@dataclass(kw_only=True)
class LinkOptions(Options, key="link"):
    """The emulated link of ``suite=slowlink`` and ``replicas``, in both directions of every edge."""

    bandwidth_gbps: float = checked(1.0, positive, 1000)
    latency_ms: float = checked(10.0, _duration, 10000)
    """One way."""
    activation_kb: int = checked(1536, size, 1)
    """Kilobytes of an activation message."""


@dataclass(kw_only=True)
class TaskOptions(Options, key="task"):
    """Task of ``suite=time_to_accuracy`` and ``wan``."""

    name: str = checked("cifar10", one_of, ("cifar10", "text"))
    """The fast network on CIFAR-10, or a small language model on the source of Python's standard library."""
    root: str | None = None
    """Folder of CIFAR-10."""
    target: float = checked(0.9, positive, 100)
    """Target of ``time_to_accuracy``: accuracy on held-out data, or bits per byte of text."""

    def of_data(self) -> list[str]:
        """The override that says where the data is. ``ValueError`` if it has to be known."""
        if self.name == "cifar10" and self.root is None:
            raise ValueError("task.root=null: must be the folder of CIFAR-10 for task.name=cifar10")
        return [] if self.root is None else [f"data.root={self.root}"]


@dataclass(kw_only=True)
class BenchOptions(Options):
    """All options of ``launch/bench.py``."""

    suite: Any = checked("emulated", _suites)
    """A suite, a list of suites, or ``all``: those that need no data and no hours."""
    ranks: Any = checked(None, _counts)
    """A number of processes, or a list. None: the default of the suite."""
    microbatches: Any = checked(None, _counts)
    """A number of micro-batches that pipelines send of an update batch, or a list. None: the default of the suite."""
    repeats: int = checked(5, at_least, 1)
    """Rounds, in each of which every case runs once."""
    quick: bool = False
    """Fewer cases and rounds, for a first look: a minute or two."""
    out: str = "runs/bench"
    """Folder of ``bench.json``, ``bench.md`` and the charts."""
    stage: StageOptions = field(default_factory=StageOptions)
    link: LinkOptions = field(default_factory=LinkOptions)
    task: TaskOptions = field(default_factory=TaskOptions)

    @property
    def suites(self) -> list[Any]:
        every = [name for name in SUITE_NAMES if name not in ("time_to_accuracy", "wan")]  # these take data, and hours
        return every if self.suite == "all" else _as_list(self.suite)

    def numbers(self, key: str, default: list[int]) -> list[int]:
        """The values of ``ranks`` or ``microbatches``; ``default`` if the option is not set."""
        value = getattr(self, key)
        return default if value is None else _as_list(value)

    @property
    def rounds(self) -> int:
        return min(self.repeats, 3) if self.quick else self.repeats


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
