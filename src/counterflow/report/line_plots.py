"""Line plots of accuracies and losses. There is one colour an algorithm, and files are a function of the data alone."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from counterflow.plot_style import ALGORITHMS, BROWN, PURPLE, RED, SKY, STYLE, WIDTH
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

_OTHERS = (RED, SKY, BROWN, PURPLE)
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP*X"
_LEGEND_LETTERS = 95
"""Letters that fit beside each other in a legend over the whole width."""
_LEGEND_LINE = 8
"""Width of the line beside a text, in letters."""

_Line = tuple[str | None, Mapping[str, Any], pd.DataFrame]
"""Text in the legend, style, and ``STATISTICS`` by x."""
MILLION = 1e6
_HEIGHT = 4.2
_PANEL_HEIGHT = 3.0
_OFFSETS = [(dx, dy) for dy, dx in product((0, 11, -11, 22, -22, 33, -33, 44, -44), (7, -7))]
"""Possible places of a label, in points from its dot: right or left, then above, then below, then further away."""


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write ``path`` as PNG and as SVG, whose bytes are a function of the data alone."""
    with rc_context(STYLE):
        figure = draw()
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def subplots(count: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure of ``count`` axes in rows of ``columns``, each ``height`` inches high."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flatten()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def colour(algorithm: str) -> str:
    """The same in every plot; for an algorithm without a colour above, a function of its name."""
    return ALGORITHMS.get(algorithm) or _OTHERS[sum(algorithm.encode()) % len(_OTHERS)]


def shade(algorithm: str, k: int, blocks: int) -> tuple[float, ...]:
    """Colour of block k of ``blocks``: the top has the algorithm's, those below are lighter."""
    share = 0.3 + 0.7 * (k / blocks)
    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour(algorithm)))


def line_styles(groups: Sequence[ConfigGroup]) -> Sequence[Mapping[str, Any]]:
    """Line, marker and colour of every group; groups of one algorithm differ in line and marker."""
    algorithms = pd.Series([group.first["algorithm"] for group in groups], dtype=object)
    return [
        {"color": colour(algorithm), "linestyle": _LINES[i % len(_LINES)], "marker": _MARKERS[i % len(_MARKERS)]}
        for algorithm, i in zip(algorithms, algorithms.groupby(algorithms).cumcount(), strict=True)
    ]


def errorbars(axis: Axes, statistics: pd.DataFrame, label: str | None, style: Mapping[str, Any]) -> None:
    """Draw means against the index, with bars of a standard deviation; a single value has a bar of length 0.

    Args:
        axis: Axes to draw on.
        statistics: Columns ``mean`` and ``std``.
        label: Text in the legend; None for none.
        style: Line, marker and colour.
    """
    axis.errorbar(
        statistics.index, statistics["mean"], statistics["std"].astype(float).fillna(0), label=label, capsize=3, **style
    )


def whole_numbers(axis: Axes, name: str) -> None:
    """Label an x axis of whole numbers."""
    axis.set_xlabel(name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, so that it covers no data."""
    handles, texts = axes.get_legend_handles_labels()
    if not texts:
        return
    widths = [len(text) + _LEGEND_LINE for text in texts]
    columns = len(texts) if sum(widths) <= _LEGEND_LETTERS else max(1, _LEGEND_LETTERS // max(widths))
    figure.legend(handles, texts, loc="outside upper left", ncols=columns)


def percent(axis: Axes, name: str) -> None:
    """Label the y axis, and end it where accuracies do."""
    axis.set(ylabel=name, ylim=(None, min(axis.get_ylim()[1], 100.5)))


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
    lines = _lines(groups, [("blocks", *depth), (*depth,), ("model.cut",)], "layers", accuracy)
    figure, axis = _accuracy_plot(accuracy, None, lines)
    whole_numbers(axis, "layers of the network")
    return figure


def accuracy_by_cost(groups: Sequence[ConfigGroup]) -> Figure:
    """A labelled point a group; backprop, which computes nothing beside the network, is dashed."""
    accuracy = main_accuracy(groups)
    others = [group for group in beside_backprop(groups) if group.first["extra_flops"] is not None]
    known = [others[i] for i in accuracy.of(others)["mean"].dropna().index]
    results = accuracy.of(known).set_axis([100 * group.first["extra_flops"] for group in known])
    lines = [
        (None, {"color": colour(group.first["algorithm"]), "linestyle": "", "marker": "o"}, results[i : i + 1])
        for i, group in enumerate(known)
    ]
    figure, axis = _accuracy_plot(accuracy, plain_backprop(groups), lines, height=4.6)
    axis.set_xlabel("extra FLOPs of training a sample [% of backprop's]")
    axis.margins(x=0.12, y=0.15)
    _label_points(figure, axis, list(results["mean"].items()), labels(known))
    return figure


def accuracy_by_exit(groups: Sequence[ConfigGroup]) -> Figure:
    """A line a group, a point a block at which a prediction can end."""
    accuracy = main_accuracy(groups)
    lines = [
        (name, style, accuracy.of_exits(group).droplevel("block").rename(index=lambda flops: flops / MILLION))
        for group, name, style in zip(groups, labels(groups), line_styles(groups), strict=True)
    ]
    figure, axis = _accuracy_plot(accuracy, None, lines)
    axis.set(xlabel="FLOPs of predicting a sample [millions]", xlim=(0, None))
    return figure


def with_exits(groups: Sequence[ConfigGroup]) -> Sequence[ConfigGroup]:
    """The groups whose predictions can end at a block; none unless one of them has several such blocks."""
    accuracy = main_accuracy(groups)
    counts = [len(accuracy.of_exits(group)) for group in groups]
    return [group for group, count in zip(groups, counts, strict=True) if count] if max(counts) > 1 else []


def costs_vary(groups: Sequence[ConfigGroup]) -> bool:
    """True if groups beside backprop differ in their extra FLOPs."""
    return len({group.first["extra_flops"] for group in beside_backprop(groups)} - {None}) > 1


def learning_curves(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy on held-out data: first all groups, then the blocks of every group whose blocks predict.

    The top block's curve is that of the network.
    """
    accuracies = [metric_curves(group, "validation", "accuracy", unit=100) for group in groups]
    lines = list(zip(groups, labels(groups), accuracies, strict=True))
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
    """``|| b_i(s_i) - t_i ||^2``, mean over a batch of training: a panel a group, a line a layer."""
    height = _PANEL_HEIGHT if len(groups) > 1 else _HEIGHT
    figure, axes = subplots(len(groups), min(2, len(groups)), height, sharey=True)
    for axis, group, name in zip(axes, groups, labels(groups), strict=True):
        _draw_blocks(axis, group, metric_curves(group, "train", "associated"), name, "layer")
        axis.set(yscale="log", xlabel="batch", ylabel="associated loss")
        axis.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
        )
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
    dashed = accuracy.of([backprop] if backprop is not None else [])
    for mean, deviation, count in dashed.dropna(subset="mean").fillna(0).itertuples(index=False):
        name = f"{NAMES[BASELINE]} ({count:.0f} seed{'s' * (count != 1)})"
        axis.axhline(mean, color=colour(BASELINE), linestyle="--", label=name)
        axis.axhspan(mean - deviation, mean + deviation, color=colour(BASELINE), alpha=0.12, linewidth=0)
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
        results = accuracy.of(line).set_axis(pd.Index([group.first[x] for group in line]))
        yield name, style, results[results.index.notna()].dropna(subset="mean").sort_index()


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
        places = [
            axis.annotate(
                text,
                point,
                xytext=offset,
                textcoords="offset points",
                ha="left" if offset[0] > 0 else "right",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )
            for offset in _OFFSETS
        ]
        others = [*taken, *dots[:i], *dots[i + 1 :]]
        best = min(places, key=lambda note: _conflicts(note.get_window_extent(), axis.bbox, others))
        taken.append(best.get_window_extent())
        for note in places:
            if note is not best:
                note.remove()


def _conflicts(label: Bbox, inside: Bbox, others: Sequence[Bbox]) -> int:
    """Number of ``others`` that a label would cover, and one more if it is not wholly ``inside``."""
    outside = not all(inside.contains(*corner) for corner in (label.p0, label.p1))
    return sum(label.overlaps(other) for other in others) + outside
