"""Colours, lines and markers of groups: one colour an algorithm."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import to_rgb

from counterflow.plot_style import ALGORITHMS, BROWN, PURPLE, RED, SKY
from counterflow.report.groups import ConfigGroup

_OTHERS = (RED, SKY, BROWN, PURPLE)
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP*X"


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
