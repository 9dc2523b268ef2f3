"""A mean over seeds, and how far the seeds lie apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Estimate:
    """In the unit of the values."""

    mean: float
    std: float | None
    """Sample standard deviation (n - 1); None of a single value."""
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Estimate | None":
        """Of the values that are there; None where there is none."""
        there = [value for value in values if value is not None]
        if not there:
            return None
        return cls(mean(there), stdev(there) if len(there) > 1 else None, len(there))

    @property
    def error(self) -> float:
        """Length of an error bar: 0 where a single value shows no spread."""
        return self.std or 0.0
