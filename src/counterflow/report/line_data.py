"""Data of line plots, which all ways of drawing share: accuracies with their deviation, and curves of training."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from counterflow.report.groups import (
    BASELINE,
    NAMES,
    STATISTICS,
    ConfigGroup,
    Measure,
    beside_backprop,
    labels,
    line_groups,
    main_accuracy,
)
from counterflow.report.line_styles import colour, line_styles

_MILLION = 1e6


class Line(NamedTuple):
    name: str
    style: Mapping[str, Any]
    statistics: pd.DataFrame
    """``STATISTICS`` by x."""


@dataclass(frozen=True)
class LinePlot:
    """Accuracies in percent, against the index of every line."""

    x: str
    """Label of the x axis."""
    y: str
    accuracy: Measure
    lines: Sequence[Line]
    backprop: ConfigGroup | None = None
    """Its accuracy holds for all x."""

    @property
    def reference(self) -> Line | None:
        """Backprop as a dashed line of one value, without an x; None if its accuracy is not known."""
        statistics = self.accuracy.of([self.backprop] if self.backprop else []).dropna(subset="mean")
        for count in statistics["count"]:
            name = f"{NAMES[BASELINE]} ({count:.0f} seed{'s' * (count != 1)})"
            return Line(name, {"color": colour(BASELINE), "linestyle": "--"}, statistics)
        return None


def plain_backprop(groups: Sequence[ConfigGroup]) -> ConfigGroup | None:
    """Backprop in the fewest blocks: it does not depend on the blocks, so that one line stands for all."""
    backprop = [group for group in groups if group.first["algorithm"] == BASELINE]
    return min(backprop, key=lambda group: int(group.first["blocks"]), default=None)


def varies(groups: Sequence[ConfigGroup], x: str) -> bool:
    """True if an algorithm with an accuracy was run at several values of ``x``, a key of the summary."""
    accuracy = main_accuracy(groups)
    points = pd.DataFrame({"algorithm": [g.first["algorithm"] for g in groups], "x": [g.first[x] for g in groups]})
    known = points[accuracy.of(groups)["mean"].notna()]
    return bool((known.groupby("algorithm")["x"].nunique() > 1).any())


def by_block(groups: Sequence[ConfigGroup]) -> LinePlot:
    """A line a group whose blocks predict, a point a block; backprop predicts only at the top."""
    accuracy = main_accuracy(groups)
    local = [group for group in groups if len(accuracy.of_blocks(group)) > 1]
    lines = [*map(Line, labels(local), line_styles(local), map(accuracy.of_blocks, local))]
    y = f"{accuracy.name} accuracy of the block alone [%]"
    return LinePlot("block (1 is next to the inputs)", y, accuracy, lines, plain_backprop(groups))


def blocks_predict(groups: Sequence[ConfigGroup]) -> bool:
    """True if a group has an accuracy for more than one block."""
    accuracy = main_accuracy(groups)
    return any(len(accuracy.of_blocks(group)) > 1 for group in groups)


def by_blocks(groups: Sequence[ConfigGroup]) -> LinePlot:
    """Groups of one network against the number of blocks, on which backprop does not depend."""
    accuracy = main_accuracy(groups)
    lines = [*_lines(beside_backprop(groups), [("blocks", "model.cut")], "blocks", accuracy)]
    return LinePlot("blocks", _label(accuracy), accuracy, lines, plain_backprop(groups))


def by_layers(groups: Sequence[ConfigGroup]) -> LinePlot:
    """Networks of one kind that differ in their number of layers."""
    accuracy = main_accuracy(groups)
    depth = sorted({key for group in groups for key in group.settings if key.startswith("model.")})
    lines = [*_lines(groups, [("blocks", *depth), (*depth,), ("model.cut",)], "layers", accuracy)]
    return LinePlot("layers of the network", _label(accuracy), accuracy, lines)


def by_cost(groups: Sequence[ConfigGroup]) -> LinePlot:
    """A point a group; backprop computes nothing beside the network."""
    accuracy = main_accuracy(groups)
    others = [group for group in beside_backprop(groups) if group.first["extra_flops"] is not None]
    known = [others[i] for i in accuracy.of(others)["mean"].dropna().index]
    results = accuracy.of(known).set_axis([100 * group.first["extra_flops"] for group in known])
    lines = [
        Line(name, {"color": colour(group.first["algorithm"]), "linestyle": "", "marker": "o"}, results[i : i + 1])
        for i, (group, name) in enumerate(zip(known, labels(known), strict=True))
    ]
    x = "extra FLOPs of training a sample [% of backprop's]"
    return LinePlot(x, _label(accuracy), accuracy, lines, plain_backprop(groups))


def costs_vary(groups: Sequence[ConfigGroup]) -> bool:
    """True if groups beside backprop differ in their extra FLOPs."""
    return len({group.first["extra_flops"] for group in beside_backprop(groups)} - {None}) > 1


def by_exit(groups: Sequence[ConfigGroup]) -> LinePlot:
    """A line a group, a point a block at which a prediction can end."""
    accuracy = main_accuracy(groups)
    lines = [
        Line(name, style, accuracy.of_exits(group).droplevel("block").rename(index=lambda flops: flops / _MILLION))
        for group, name, style in zip(groups, labels(groups), line_styles(groups), strict=True)
    ]
    return LinePlot("FLOPs of predicting a sample [millions]", _label(accuracy), accuracy, lines)


def with_exits(groups: Sequence[ConfigGroup]) -> Sequence[ConfigGroup]:
    """The groups whose predictions can end at a block; none unless one of them has several such blocks."""
    accuracy = main_accuracy(groups)
    counts = [len(accuracy.of_exits(group)) for group in groups]
    return [group for group, count in zip(groups, counts, strict=True) if count] if max(counts) > 1 else []


def metric_curves(group: ConfigGroup, event: str, name: str, unit: float = 1.0) -> Sequence[pd.DataFrame]:
    """Curves of a metric for every block, bottom to top: a row a batch that all runs of the group have.

    A block without values has an empty curve; a group without the metric has no curves.

    Args:
        group: Runs to take the mean of.
        event: Event of the rows in ``metrics.jsonl``.
        name: Key of the metric.
        unit: Factor of its values.
    """
    values = unit * pd.concat([run.metric(event, name) for run in group.runs])
    by_batch = values[values.groupby(level=0).transform("size") == len(group.runs)].groupby(level=0)
    return [by_batch[k].agg(STATISTICS).dropna(subset="mean") for k in values] if len(by_batch) else []


def with_curves(groups: Sequence[ConfigGroup], event: str, name: str) -> Sequence[ConfigGroup]:
    """The groups that have a metric of some block at more than one batch."""
    return [group for group in groups if any(len(curve) > 1 for curve in metric_curves(group, event, name))]


def _label(accuracy: Measure) -> str:
    return f"{accuracy.name} accuracy [%]"


def _lines(
    groups: Sequence[ConfigGroup],
    attempts: Sequence[Collection[str]],
    x: str,
    accuracy: Measure,
) -> Iterator[Line]:
    """Lines of ``line_groups``; groups without an accuracy or ``x`` are left out.

    Args:
        groups: Points of all lines.
        attempts: Sets of options that a line may run through.
        x: Key of the summary: position of a group on the x axis.
        accuracy: Accuracy of the y axis.
    """
    lines = line_groups(groups, attempts, x)
    for (name, line), style in zip(lines, line_styles([line[0] for _, line in lines]), strict=True):
        results = accuracy.of(line).set_axis(pd.Index([group.first[x] for group in line]))
        yield Line(name, style, results[results.index.notna()].dropna(subset="mean").sort_index())
