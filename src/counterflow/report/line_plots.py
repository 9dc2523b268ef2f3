"""Line plots of accuracies and losses as files, which are a function of the data alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from counterflow.plot_style import STYLE, WIDTH
from counterflow.report.groups import ConfigGroup, labels
from counterflow.report.line_data import LinePlot, by_block, by_blocks, by_cost, by_exit, by_layers, metric_curves
from counterflow.report.line_styles import line_styles, shade, shades_text

_LEGEND_LETTERS = 95
"""Letters that fit beside each other in a legend over the whole width."""
_LEGEND_LINE = 8
"""Width of the line beside a text, in letters."""

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


def block_accuracies(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy of every block by itself."""
    figure, axis = _accuracy_plot(data := by_block(groups))
    whole_numbers(axis, data.x)
    return figure


def accuracy_by_blocks(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy against the number of blocks."""
    figure, axis = _accuracy_plot(data := by_blocks(groups))
    ticks = sorted({blocks for line in data.lines for blocks in line.statistics.index})
    if ticks[-1] >= 8 * ticks[0]:
        axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    return figure


def accuracy_by_layers(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy against the number of layers."""
    figure, axis = _accuracy_plot(data := by_layers(groups))
    whole_numbers(axis, data.x)
    return figure


def accuracy_by_cost(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy against extra FLOPs, each point with its label."""
    data = by_cost(groups)
    figure, axis = _accuracy_plot(data, height=4.6, labelled=False)
    axis.margins(x=0.12, y=0.15)
    points = [point for line in data.lines for point in line.statistics["mean"].items()]
    _label_points(figure, axis, points, [line.name for line in data.lines])
    return figure


def accuracy_by_exit(groups: Sequence[ConfigGroup]) -> Figure:
    """Accuracy against FLOPs of predictions that end at a block."""
    figure, axis = _accuracy_plot(by_exit(groups))
    axis.set_xlim(0, None)
    return figure


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
        draw_blocks(axis, group, curves, name, "block")
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
        draw_blocks(axis, group, metric_curves(group, "train", "associated"), name, "layer")
        axis.set(yscale="log", xlabel="batch", ylabel="associated loss")
        axis.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter()
        )
    return figure


def _accuracy_plot(data: LinePlot, height: float = _HEIGHT, labelled: bool = True) -> tuple[Figure, Axes]:
    """Draw lines with error bars, and the reference as a dashed line over the full width, with a band of a deviation.

    Args:
        data: What to draw.
        height: Height of the figure, in inches.
        labelled: Lines have their names in the legend.
    """
    figure, (axis,) = subplots(1, 1, height)
    if data.reference is not None:
        name, style, statistics = data.reference
        for mean, deviation in statistics[["mean", "std"]].fillna(0).itertuples(index=False):
            axis.axhline(mean, label=name, **style)
            axis.axhspan(mean - deviation, mean + deviation, color=style["color"], alpha=0.12, linewidth=0)
    for line in data.lines:
        errorbars(axis, line.statistics, line.name if labelled else None, line.style)
    axis.set_xlabel(data.x)
    percent(axis, data.y)
    legend(figure, axis)
    return figure, axis


def draw_blocks(axis: Axes, group: ConfigGroup, curves: Sequence[pd.DataFrame], name: str, kind: str) -> None:
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
    axis.set_title(shades_text(name, kind, count), loc="left")


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
