"""Style of all plots: one colour an algorithm, text that can be read at 800 pixels, reproducible files."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from counterflow.report.groups import ConfigGroup

_COLOURS = {"bp": "#404040", "fa": "#e69f00", "predsim": "#009e73", "al": "#cc79a7", "bll": "#0072b2"}
_OTHERS = ("#d55e00", "#56b4e9", "#8c6d31", "#7b4173")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP*X"
_WIDTH = 8.0
_LEGEND_LETTERS = 95
"""Letters that fit beside each other in a legend over the whole width."""
_LEGEND_LINE = 8
"""Width of the line beside a text, in letters."""

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "counterflow",
}


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write ``path`` as PNG and as SVG, whose bytes are a function of the data alone."""
    with rc_context(_STYLE):
        figure = draw()
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def subplots(count: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure of ``count`` axes in rows of ``columns``, each ``height`` inches high."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).flatten()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def colour(algorithm: str) -> str:
    """The same in every plot; for an algorithm without a colour above, a function of its name."""
    return _COLOURS.get(algorithm) or _OTHERS[sum(algorithm.encode()) % len(_OTHERS)]


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
    errors = statistics["std"].astype(float).fillna(0)
    axis.errorbar(statistics.index, statistics["mean"], errors, label=label, capsize=3, **style)


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
    axis.set_ylabel(name)
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
