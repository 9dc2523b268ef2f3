"""The groups of one experiment at one scale: what a table shows, and what may be compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from counterflow.report.group import BASELINE, Group, gather
from counterflow.report.run import Run


@dataclass(frozen=True)
class Comparison:
    experiment: str | None
    scale: str | None
    """None without an experiment, whose values it would choose."""
    groups: Sequence[Group]
    repeated: Sequence[Run]
    """Runs left out, as another one of this comparison has the same seed and options."""

    @property
    def title(self) -> str:
        return f"{self.experiment}, scale {self.scale or 'not recorded'}" if self.experiment else "Of no experiment"

    @property
    def slug(self) -> str:
        return f"{self.experiment}-{self.scale or 'unscaled'}" if self.experiment else "runs"

    @property
    def networks(self) -> Sequence[Sequence[Group]]:
        """The groups by the network and data they train."""
        parts: dict[str, list[Group]] = {}
        for group in self.groups:
            parts.setdefault(group.network, []).append(group)
        return list(parts.values())

    def baseline(self, group: Group) -> Group | None:
        """Backprop on the same network, data and budget; of several the one with the fewest other options.

        As the blocks are nothing to it, their number decides only between equals: the same, else the lowest. None where
        there is no backprop, or where two are equally near.
        """
        near = [
            ((_distance(group, other), other.first.blocks != group.first.blocks, other.first.blocks), i)
            for i, other in enumerate(self.groups)
            if other.first.algorithm == BASELINE
            and other.network == group.network
            and other.first.steps == group.first.steps
        ]
        if not near or [distance for distance, _ in near].count(min(near)[0]) > 1:
            return None
        return self.groups[min(near)[1]]


def compare(runs: Iterable[Run]) -> Sequence[Comparison]:
    """One comparison an experiment and scale, in the order of their names; runs of no experiment come last."""
    parts: dict[tuple[str | None, str | None], list[Run]] = {}
    for run in runs:
        parts.setdefault((run.experiment, run.scale if run.experiment else None), []).append(run)
    ordered = sorted(parts, key=lambda key: (key[0] is None, key[0] or "", key[1] or ""))
    return [Comparison(*key, *gather(parts[key])) for key in ordered]


def _distance(group: Group, other: Group) -> int:
    """How many options the two have otherwise, but for blocks and for those of the algorithm, which it always has."""
    keys = {key for key in (*group.settings, *other.settings) if not key.startswith("algorithm.") and key != "blocks"}
    return sum(group.settings.get(key) != other.settings.get(key) for key in keys)
