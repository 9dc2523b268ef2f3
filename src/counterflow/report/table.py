"""The table of a comparison: a row a group, and only the columns that its runs give something for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from counterflow.report.accuracy import SEQUENCES, TEST, VALIDATION, Accuracy
from counterflow.report.comparison import Comparison
from counterflow.report.group import BASELINE, Group, differences, show
from counterflow.report.published import PUBLISHED

FULL = "full"
"""The scale at which networks are those of the papers."""
LOOKED_AGAIN = "†"
_OWN_COLUMN = ("algorithm.name", "model.name", "data.name", "blocks", "scale")


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A cell without a number is empty."""

    def markdown(self) -> str:
        numeric = [all(row[i][:1] in "0123456789+-" for row in self.rows) for i in range(len(self.header))]
        rule = ["---:" if right else "---" for right in numeric]
        return "\n".join(_line(row) for row in (self.header, rule, *self.rows))


def table(comparison: Comparison) -> Table:
    groups = comparison.groups
    published = "published" if comparison.scale == FULL else "published for the full-size network"
    columns = {
        "algorithm": [group.name for group in groups],
        "model": [group.first.model for group in groups],
        "data": [group.first.data for group in groups],
        "blocks": [str(group.first.blocks) for group in groups],
        "options": _options(groups),
        "processes": _processes(groups),
        "test accuracy [%]": [_test(group) for group in groups],
        "sequences right [%]": [_spread(group, SEQUENCES) for group in groups],
        "validation accuracy [%]": [_spread(group, VALIDATION) for group in groups],
        "seeds": [str(len(group.runs)) for group in groups],
        "test gap to BP [points]": [_gap(comparison, group, TEST) for group in groups],
        "validation gap to BP [points]": [_gap(comparison, group, VALIDATION) for group in groups],
        f"{published} [%]": [_published(group) for group in groups],
        "parameters (effective + affiliated)": [
            f"{group.first.effective_parameters:,} + {group.first.affiliated_parameters:,}" for group in groups
        ],
        "extra FLOPs [%]": [_extra(group) for group in groups],
        "samples/s": [f"{_speed(group):,.0f}" for group in groups],
        "samples/s over BP's": [_ratio(comparison, group) for group in groups],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(list(kept), list(zip(*kept.values(), strict=True)))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _options(groups: Sequence[Group]) -> list[str]:
    found = differences(groups, per_algorithm=False, without=_OWN_COLUMN)
    return [", ".join(f"{key}={show(value)}" for key, value in options.items()) for options in found]


def _processes(groups: Sequence[Group]) -> list[str]:
    """Nothing where every run had one process."""
    counts = [sorted({run.summary.ranks or 1 for run in group.runs}) for group in groups]
    if all(count == [1] for count in counts):
        return ["" for _ in groups]
    return [", ".join(map(str, count)) for count in counts]


def _test(group: Group) -> str:
    text = _spread(group, TEST)
    return f"{text} {LOOKED_AGAIN}" if text and any(run.tests > 1 for run in group.runs) else text


def _spread(group: Group, accuracy: Accuracy) -> str:
    """In percent; it says of how many seeds it is where not all have the figure."""
    estimate = accuracy.of(group)
    if estimate is None:
        return ""
    text = f"{estimate.mean:.2f}"
    if estimate.std is not None:
        text += f" ± {estimate.std:.2f}"
    return text if estimate.count == len(group.runs) else f"{text} (of {estimate.count})"


def _gap(comparison: Comparison, group: Group, accuracy: Accuracy) -> str:
    base = comparison.baseline(group)
    if base is None or group.first.algorithm == BASELINE:
        return ""
    own, other = accuracy.of(group), accuracy.of(base)
    return "" if own is None or other is None else f"{own.mean - other.mean:+.2f}"


def _published(group: Group) -> str:
    first = group.first
    found = PUBLISHED.get((first.algorithm, first.model, first.data))
    return "" if found is None else f"{found.percent:.1f}"


def _extra(group: Group) -> str:
    extra = group.first.extra_flops
    return "" if extra is None else f"{100 * extra:.1f}"


def _speed(group: Group) -> float:
    return mean(run.summary.samples_per_second for run in group.runs)


def _ratio(comparison: Comparison, group: Group) -> str:
    """Nothing where the two ran on different machines."""
    base = comparison.baseline(group)
    if base is None or group.first.algorithm == BASELINE:
        return ""
    machines = {(run.summary.device, run.summary.hardware) for run in (*group.runs, *base.runs)}
    return f"{_speed(group) / _speed(base):.2f}" if len(machines) == 1 else ""
