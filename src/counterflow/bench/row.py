"""What a suite found: rows, as a table and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Medians over rounds, and the lowest and highest of them. What a suite does not measure is None."""

    name: str
    ranks: int
    samples_per_second: float | None = None
    lowest: float | None = None
    highest: float | None = None
    baseline: str | None = None
    """The name of the row that ratios are to."""
    ratio_to_baseline: float | None = None
    ratio_lowest: float | None = None
    ratio_highest: float | None = None
    wait_fraction: float | None = None
    peak_rss_bytes: int | None = None
    """Of the rank that took most."""
    peak_cuda_bytes: int | None = None
    batch: int | None = None
    """Samples of an update batch."""
    microbatches: int | None = None
    repeats: int = 1
    more: Mapping[str, float | str | None] = field(default_factory=dict)
    """Figures of this suite alone."""

    def having(self, **figures: float | str | None) -> "StepMetrics":
        """With more ``figures``."""
        return replace(self, more={**self.more, **figures})


@dataclass(frozen=True)
class Goal:
    """What was to be reached, and what was."""

    text: str
    wanted: float
    reached: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


@dataclass(frozen=True)
class Result:
    """One suite."""

    suite: str
    settings: Mapping[str, Any]
    """What was run, in words and numbers; with ``emulated`` where something was."""
    rows: Sequence[StepMetrics]
    goals: Sequence[Goal]

    def note(self) -> dict[str, Any]:
        """As JSON holds it; figures of a suite's own stand beside the others."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            row |= row.pop("more")
        return {
            "suite": self.suite,
            "settings": dict(self.settings),
            "rows": rows,
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
        }
