"""How every figure looks: one colour an algorithm, text that can be read at 800 pixels, files of equal bytes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from counterflow.report.group import Group

_COLOURS = {"bp": "#404040", "fa": "#e69f00", "predsim": "#009e73", "al": "#cc79a7", "bll": "#0072b2"}
_OTHERS = ("#d55e00", "#56b4e9", "#8c6d31", "#7b4173")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP*X"
_WIDTH = 8.0
_LEGEND_LETTERS = 95
"""Letters that fit beside each other in a legend over the whole width."""
_LEGEND_LINE = 8
"""What the line beside a text takes, in letters."""

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
    """Write ``path`` as PNG and as SVG, which are a function of the data alone."""
    with rc_context(_STYLE):
        figure = draw()
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def canvas(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure of ``rows * columns`` axes, row by row, each ``height`` inches high."""
    figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, list(axes.flat)


def colour(algorithm: str) -> str:
    """The same in every figure; of algorithms that this page does not know, a function of the name."""
    return _COLOURS.get(algorithm) or _OTHERS[sum(algorithm.encode()) % len(_OTHERS)]


def shade(algorithm: str, k: int, blocks: int) -> tuple[float, float, float]:
    """The colour of block k: the top has the algorithm's, the ones below are lighter."""
    share = 0.3 + 0.7 * (k / blocks)
    red, green, blue = 1 - share * (1 - np.asarray(to_rgb(colour(algorithm))))
    return float(red), float(green), float(blue)


def looks(groups: Sequence[Group]) -> Sequence[Mapping[str, Any]]:
    """Line, marker and colour of every group; groups of one algorithm differ in line and marker."""
    seen: dict[str, int] = {}
    found = []
    for group in groups:
        algorithm = group.first.algorithm
        i = seen[algorithm] = seen.get(algorithm, -1) + 1
        found.append(
            {"color": colour(algorithm), "linestyle": _LINES[i % len(_LINES)], "marker": _MARKERS[i % len(_MARKERS)]}
        )
    return found


def legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, so that it covers no data."""
    handles, texts = axes.get_legend_handles_labels()
    if not texts:
        return
    widths = [len(text) + _LEGEND_LINE for text in texts]
    columns = len(texts) if sum(widths) <= _LEGEND_LETTERS else max(1, _LEGEND_LETTERS // max(widths))
    figure.legend(handles, texts, loc="outside upper left", ncols=columns)


def line_of(look: Mapping[str, Any]) -> Mapping[str, Any]:
    """``look`` without its marker."""
    return {key: value for key, value in look.items() if key != "marker"}


def percent(axis: Axes, name: str) -> None:
    """Label the y axis, and end it where accuracies do."""
    axis.set_ylabel(name)
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
