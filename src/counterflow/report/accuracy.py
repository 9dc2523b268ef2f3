"""Accuracies of groups in percent, on test data or on held-out data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from counterflow.report.estimate import Estimate
from counterflow.report.group import Group
from counterflow.report.run import Summary


@dataclass(frozen=True)
class Accuracy:
    name: str
    _network: Callable[[Summary], float | None]
    _blocks: Callable[[Summary], Sequence[float | None]]

    @property
    def axis(self) -> str:
        return f"{self.name} accuracy [%]"

    def of(self, group: Group) -> Estimate | None:
        """Of the whole network; None where no run of the group measured it."""
        return Estimate.of(_percent(self._network(run.summary)) for run in group.runs)

    def of_blocks(self, group: Group) -> Sequence[Estimate | None]:
        """Of every block, bottom to top; None for a block that predicts nothing by itself."""
        runs = [self._blocks(run.summary) for run in group.runs]
        blocks = max(map(len, runs))
        return [Estimate.of(_percent(run[k]) for run in runs if k < len(run)) for k in range(blocks)]


TEST = Accuracy("test", lambda summary: summary.test_accuracy, lambda summary: summary.block_accuracy)
VALIDATION = Accuracy(
    "validation", lambda summary: summary.validation_accuracy, lambda summary: summary.validation_block_accuracy
)
SEQUENCES = Accuracy("test sequence", lambda summary: summary.test_sequence_accuracy, lambda _: ())


def measured(groups: Sequence[Group]) -> Accuracy:
    """The one that more of ``groups`` have; test data if both are as common. A figure never mixes the two."""
    return max((TEST, VALIDATION), key=lambda accuracy: sum(accuracy.of(group) is not None for group in groups))


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
