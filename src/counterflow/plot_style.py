"""Style of all plots: the parameters of matplotlib, and the colours."""

from collections.abc import Mapping
from typing import Any

BLUE = "#0072b2"
GREEN = "#009e73"
ORANGE = "#e69f00"
PINK = "#cc79a7"
RED = "#d55e00"
SKY = "#56b4e9"
BROWN = "#8c6d31"
PURPLE = "#7b4173"
TEAL = "#44aa99"
DARK_GREY = "#404040"
GRID = "#e4e4e4"

ALGORITHMS: Mapping[str, str] = {"bp": DARK_GREY, "fa": ORANGE, "predsim": GREEN, "al": PINK, "bll": BLUE}
"""Colours by the word after ``algorithm=``."""

WIDTH = 8.0
"""Inches; at 100 dots per inch, texts can be read."""
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "counterflow",
}
