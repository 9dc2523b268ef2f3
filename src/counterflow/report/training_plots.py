"""Plots of accuracies and losses: by block, by number of blocks or layers, by cost, and during training."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from counterflow.report.groups import (
    BASELINE,
    NAMES,
    STATISTICS,
    Accuracy,
    ConfigGroup,
    beside_backprop,
    labels,
    line_groups,
    main_accuracy,
)
from counterflow.report.plot_style import (
    colour,
    errorbars,
    legend,
    line_styles,
    percent,
    shade,
    subplots,
    whole_numbers,
)

_Line = tuple[str | None, Mapping[str, Any], pd.DataFrame]
"""Text in the legend, style, and ``STATISTICS`` by x."""
_HEIGHT = 4.2
_PANEL_HEIGHT = 3.0
_OFFSETS = [(dx, dy) for dy, dx in product((0, 11, -11, 22, -22, 33, -33, 44, -44), (7, -7))]
"""Possible places of a label, in points from its dot: right or left, then above, then below, then further away."""


def plain_backprop(groups: Sequence[ConfigGroup]) -> ConfigGroup | None:
    """Backprop in the fewest blocks: it does not depend on the blocks, so that one line stands for all."""
    backprop = [group for group in groups if group.first["algorithm"] == BASELINE]
    return min(backprop, key=lambda group: int(group.first["blocks"]), default=None)


def varies(groups: Sequence[ConfigGroup], x: str) -> bool:
    """True if an algorithm with an accuracy was run at several values of ``x``, a key of the summary."""
    accuracy = main_accuracy(groups)
    points = [(group.first["algorithm"], group.first[x]) for group in groups if accuracy.of(group) is not None]
    return bool((pd.DataFrame(points, columns=["algorithm", "x"]).groupby("algorithm")["x"].nunique() > 1).any())


def block_accuracies(groups: Sequence[ConfigGroup]) -> Figure:
    """A line a group whose blocks predict, a point a block; backprop, which predicts only at the top, is dashed."""
    accuracy = main_accuracy(groups)
    local = [group for group in groups if len(accuracy.of_blocks(group)) > 1]
    lines = zip(labels(local), line_styles(local), map(accuracy.of_blocks, local), strict=True)
    figure, axis = _accuracy_plot(accuracy, plain_backprop(groups), lines)
    percent(axis, f"{accuracy.name} accuracy of the block alone [%]")
    whole_numbers(axis, "block (1 is next to the inputs)")
    return figure


def blocks_predict(groups: Sequence[ConfigGroup]) -> bool:
    """True if a group has an accuracy for more than one block."""
    accuracy = main_accuracy(groups)
    return any(len(accuracy.of_blocks(group)) > 1 for group in groups)


def accuracy_by_blocks(groups: Sequence[ConfigGroup]) -> Figure:
    """Groups of one network; backprop, which does not depend on the blocks, is dashed."""
    accuracy = main_accuracy(groups)
    others = beside_backprop(groups)
    lines = _lines(others, [("blocks", "model.cut")], "blocks", accuracy)
    figure, axis = _accuracy_plot(accuracy, plain_backprop(groups), lines)
    ticks = sorted({group.first["blocks"] for group in others})
    if ticks[-1] >= 8 * ticks[0]:
        axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("blocks")
    return figure


def accuracy_by_layers(groups: Sequence[ConfigGroup]) -> Figure:
    """Networks of one kind that differ in their number of layers."""
    accuracy = main_accuracy(groups)
    depth = sorted({key for group in groups for key in group.settings if key.startswith("model.")})
    attempts = [("blocks", *depth), (*depth,), ("model.cut",)]
    figure, axis = _accuracy_plot(accuracy, None, _lines(groups, attempts, "layers", accuracy))
    whole_numbers(axis, "layers of the network")
    return figure


def accuracy_by_cost(groups: Sequence[ConfigGroup]) -> Figure:
    """A labelled point a group; backprop, which computes nothing beside the network, is dashed."""
    accuracy = main_accuracy(groups)
    known = [
        (group, result)
        for group in beside_backprop(groups)
        if group.first["extra_flops"] is not None and (result := accuracy.of(group)) is not None
    ]
    points = [(100 * group.first["extra_flops"], result.mean) for group, result in known]
    lines = [
        (
            None,
            {"color": colour(group.first["algorithm"]), "linestyle": "", "marker": "o"},
            pd.DataFrame([result], index=[extra]),
        )
        for (group, result), (extra, _) in zip(known, points, strict=True)
    ]
    figure, axis = _accuracy_plot(accuracy, plain_backprop(groups), lines, height=4.6)
    axis.set_xlabel("extra FLOPs of training a sample [% of backprop's]")
    axis.margins(x=0.12, y=0.15)
    _label_points(figure, axis, points, labels([group for group, _ in known]))
    return figure


def costs_vary(groups: Sequence[ConfigGroup]) -> bool:
    """True if groups beside backprop differ in their extra FLOPs."""
    return len({group.first["extra_flops"] for group in beside_backprop(groups)} - {None}) > 1


def accuracy_curves(group: ConfigGroup) -> Sequence[pd.DataFrame]:
    """Percent on held-out data; the last curve is that of the network."""
    return _curves(group, "validation", "accuracy", unit=100)


def associated_curves(group: ConfigGroup) -> Sequence[pd.DataFrame]:
    """``|| b_i(s_i) - t_i ||^2`` of every component, mean over a batch of training."""
    return _curves(group, "train", "associated")


def learning_curves(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy on held-out data: first all groups, then the blocks of every group whose blocks predict."""
    lines = list(zip(groups, labels(groups), map(accuracy_curves, groups), strict=True))
    local = [line for line in lines if sum(not curve.empty for curve in line[2]) > 1]
    height = _PANEL_HEIGHT if local else _HEIGHT
    figure, (first, *panels) = subplots(1 + len(local), 2 if local else 1, height, sharey=True)
    for (_, name, curves), style in zip(lines, line_styles(groups), strict=True):
        mean, deviation = curves[-1]["mean"], curves[-1]["std"].fillna(0)
        first.plot(mean, label=name, **{**style, "marker": ""})
        first.fill_between(mean.index, mean - deviation, mean + deviation, color=style["color"], alpha=0.2, linewidth=0)
    for axis, (group, name, curves) in zip(panels, local, strict=True):
        _draw_blocks(axis, group, curves, name, "block")
    for axis in (first, *panels):
        axis.set_xlabel("batch")
        percent(axis, "validation accuracy [%]")
    if local:
        first.set_title("whole network", loc="left")
    legend(figure, first)
    return figure


def associated_losses(groups: Sequence[ConfigGroup]) -> Figure:
    """A panel a group, a line a layer."""
    height = _PANEL_HEIGHT if len(groups) > 1 else _HEIGHT
    figure, axes = subplots(len(groups), min(2, len(groups)), height, sharey=True)
    for axis, group, name in zip(axes, groups, labels(groups), strict=True):
        _draw_blocks(axis, group, associated_curves(group), name, "layer")
        axis.set(yscale="log", xlabel="batch", ylabel="associated loss")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _accuracy_plot(
    accuracy: Accuracy, backprop: ConfigGroup | None, lines: Iterable[_Line], height: float = _HEIGHT
) -> tuple[Figure, Axes]:
    """Draw lines with error bars.

    Args:
        accuracy: Accuracy of the y axis.
        backprop: Drawn as a dashed line over the full width, with a band of a standard deviation.
        lines: All others.
        height: Height of the figure, in inches.
    """
    figure, (axis,) = subplots(1, 1, height)
    result = None if backprop is None else accuracy.of(backprop)
    if result is not None:
        style, deviation = colour(BASELINE), result.std or 0.0
        name = f"{NAMES[BASELINE]} ({result.count} seed{'s' * (result.count != 1)})"
        axis.axhline(result.mean, color=style, linestyle="--", label=name)
        axis.axhspan(result.mean - deviation, result.mean + deviation, color=style, alpha=0.12, linewidth=0)
    for label, look, statistics in lines:
        errorbars(axis, statistics, label, look)
    percent(axis, f"{accuracy.name} accuracy [%]")
    legend(figure, axis)
    return figure, axis


def _lines(
    groups: Sequence[ConfigGroup],
    attempts: Sequence[Collection[str]],
    x: str,
    accuracy: Accuracy,
) -> Iterator[_Line]:
    """Lines of ``line_groups``; groups without an accuracy or ``x`` are left out.

    Args:
        groups: Points of all lines.
        attempts: Sets of options that a line may run through.
        x: Key of the summary: position of a group on the x axis.
        accuracy: Accuracy of the y axis.
    """
    lines = line_groups(groups, attempts, x)
    for (name, line), style in zip(lines, line_styles([line[0] for _, line in lines]), strict=True):
        known = [(group.first[x], accuracy.of(group)) for group in line if group.first[x] and accuracy.of(group)]
        results = [result for _, result in known]
        yield name, style, pd.DataFrame(results, index=[n for n, _ in known], columns=STATISTICS).sort_index()


def _curves(group: ConfigGroup, event: str, name: str, unit: float = 1.0) -> Sequence[pd.DataFrame]:
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


def _draw_blocks(axis: Axes, group: ConfigGroup, curves: Sequence[pd.DataFrame], name: str, kind: str) -> None:
    """Draw the means of all curves.

    Args:
        axis: Axes to draw on.
        group: Gives the colour.
        curves: One a block, bottom to top.
        name: Label of the group.
        kind: Block or layer, in the title.
    """
    count = len(curves)
    for k, curve in enumerate(curves, 1):
        axis.plot(curve["mean"], color=shade(group.first["algorithm"], k, count), linewidth=1.8 if k == count else 0.9)
    axis.set_title(f"{name}: {kind}s 1 (light) to {count} (dark)" if count > 1 else f"{name}: one {kind}", loc="left")


def _label_points(figure: Figure, axis: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Put every text beside its point, at the first place where it covers no other text or point and stays inside."""
    figure.draw_without_rendering()  # places the axes, so that boxes of texts are known
    dots = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axis.transData.transform(points)]
    taken: list[Bbox] = []
    for i, (point, text) in enumerate(zip(points, texts, strict=True)):
        note = axis.annotate(
            text,
            point,
            xytext=_OFFSETS[0],
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
        taken.append(_place_label(note, axis, [*taken, *dots[:i], *dots[i + 1 :]]))


def _place_label(note: Annotation, axis: Axes, obstacles: Sequence[Bbox]) -> Bbox:
    """Move a label to the place with the fewest conflicts and return its box."""

    def box(offset: tuple[int, int]) -> Bbox:
        note.set_position(offset)
        note.set_horizontalalignment("left" if offset[0] > 0 else "right")
        return note.get_window_extent()

    def conflicts(offset: tuple[int, int]) -> int:
        extent = box(offset)
        outside = not all(axis.bbox.contains(*corner) for corner in (extent.p0, extent.p1))
        return sum(extent.overlaps(other) for other in obstacles) + outside

    return box(min(_OFFSETS, key=conflicts))
