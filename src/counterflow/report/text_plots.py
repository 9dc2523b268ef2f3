"""Plots of language models as files: bits per byte against tokens, time and FLOPs, and by position."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from counterflow.report.groups import ConfigGroup, labels
from counterflow.report.line_data import Line
from counterflow.report.line_plots import draw_blocks, errorbars, legend, subplots
from counterflow.report.text_data import BITS, POSITION, by_costs, by_position, position_measure


def bits_by_cost(groups: Sequence[ConfigGroup]) -> Figure:
    """Bits per byte of held-out text during training: a panel a cost, a line a group."""
    plots = by_costs(groups)
    figure, axes = subplots(len(plots), len(plots), 3.6, sharey=True)
    for axis, plot in zip(axes, plots, strict=True):
        for line in plot.lines:
            _curve(axis, line)
        axis.set(xlabel=plot.x)
        lasts = [float(line.statistics.index.max()) for line in plot.lines]  # none where no run has the cost
        axis.set_xlim(0, 1.05 * max(lasts) if lasts else None)
    axes[0].set_ylabel(BITS)
    legend(figure, max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1])))
    return figure


def bits_by_position(groups: Sequence[ConfigGroup]) -> Figure:
    """Bits per byte at the positions of a window after training: a panel a group, a line a block."""
    measure = position_measure(groups)
    figure, axes = subplots(len(groups), min(2, len(groups)), 3.0 if len(groups) > 1 else 4.2, sharey=True)
    for axis, group, name in zip(axes, groups, labels(groups), strict=True):
        draw_blocks(axis, group, by_position(group, measure), name, "block")
        axis.set_xscale("log", base=2)
        axis.set(xlabel=POSITION, ylabel=f"{measure.name} [bits per byte]")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    return figure


def _curve(axis: Axes, line: Line) -> None:
    """Means with a band of a deviation; a single point with a bar."""
    if len(line.statistics) == 1:
        errorbars(axis, line.statistics, line.name, line.style)
        return
    mean, deviation = line.statistics["mean"], line.statistics["std"].astype(float).fillna(0)
    axis.plot(mean, label=line.name, **{**line.style, "marker": ""})
    axis.fill_between(mean.index, mean - deviation, mean + deviation, color=line.style["color"], alpha=0.2, linewidth=0)
