"""Colours, lines and markers of groups: one colour an algorithm."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from counterflow.plot_style import ALGORITHMS, BROWN, PURPLE, RED, SKY
from counterflow.report.groups import ConfigGroup

_OTHERS = (RED, SKY, BROWN, PURPLE)
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP*X"


def colour(algorithm: str) -> str:
    """The same in every plot; for an algorithm without a colour above, a function of its name."""
    return ALGORITHMS.get(algorithm) or _OTHERS[sum(algorithm.encode()) % len(_OTHERS)]


def shade(algorithm: str, k: int, blocks: int) -> str:
    """Colour of block k of ``blocks``: the top has the algorithm's, those below are lighter."""
    share = 0.3 + 0.7 * (k / blocks)
    red, green, blue = to_rgb(colour(algorithm))
    return to_hex((1 - share * (1 - red), 1 - share * (1 - green), 1 - share * (1 - blue)))


def shades_text(name: str, kind: str, count: int) -> str:
    """Title of a plot with a shade for each of ``count`` blocks or layers, the ``kind``, of the group ``name``."""
    return f"{name}: {kind}s 1 (light) to {count} (dark)" if count > 1 else f"{name}: one {kind}"


def line_styles(groups: Sequence[ConfigGroup]) -> Sequence[Mapping[str, Any]]:
    """Line, marker and colour of every group; groups of one algorithm differ in line and marker."""
    algorithms = pd.Series([group.first["algorithm"] for group in groups], dtype=object)
    return [
        {"color": colour(algorithm), "linestyle": _LINES[i % len(_LINES)], "marker": _MARKERS[i % len(_MARKERS)]}
        for algorithm, i in zip(algorithms, algorithms.groupby(algorithms).cumcount(), strict=True)
    ]
