"""A figure of the metrics against the batch: mean and spread over the seeds of a group."""

from collections.abc import Sequence
from dataclasses import dataclass

from counterflow.report.estimate import Estimate
from counterflow.report.group import Group


@dataclass(frozen=True)
class Curve:
    batches: Sequence[int]
    estimates: Sequence[Estimate]
    """One a batch."""

    @property
    def means(self) -> Sequence[float]:
        return [estimate.mean for estimate in self.estimates]

    @property
    def band(self) -> tuple[Sequence[float], Sequence[float]]:
        """A standard deviation below and above the mean."""
        low = [estimate.mean - estimate.error for estimate in self.estimates]
        return low, [estimate.mean + estimate.error for estimate in self.estimates]


def curves(group: Group, event: str, name: str, unit: float = 1.0) -> Sequence[Curve]:
    """Of every block, bottom to top, multiplied by ``unit``; at the batches that every run of the group has.

    A block without the figure has an empty curve; a group without it has none at all.
    """
    columns = [run.column(event, name) for run in group.runs]
    batches = sorted(set.intersection(*(set(column) for column in columns)))
    blocks = max((len(column[n]) for column in columns for n in batches), default=0)
    found = []
    for k in range(blocks):
        values = {
            n: Estimate.of(
                unit * value for column in columns if k < len(column[n]) and (value := column[n][k]) is not None
            )
            for n in batches
        }
        there = {n: estimate for n, estimate in values.items() if estimate is not None}
        found.append(Curve(list(there), list(there.values())))
    return found
