"""How the figures of all suites look. They are drawn from what ``bench.json`` holds, and from nothing else."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = {
    "BLL": "#0072b2",
    "AL": "#cc79a7",
    "Pred-Sim": "#009e73",
    "1F1B": "#d55e00",
    "GPipe": "#e69f00",
    "interleaved": "#8c6d31",
    "ZBV": "#7b4173",
    "DDP": "#56b4e9",
}
_OTHERS = "#606060"
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
_WIDTH = 8.0

RowAssembler = Sequence[Mapping[str, Any]]


def colour(name: str) -> str:
    """Of a contender, by the first word of its name."""
    return _COLOURS.get(name.split()[0].rstrip(","), _OTHERS)


def save(path: Path, rows: int, columns: int, height: float, draw: Callable[[Figure, Sequence[Axes]], None]) -> None:
    """Write ``path`` as PNG: ``rows * columns`` axes, each ``height`` inches high."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, rows * height), layout="constrained")
        draw(figure, list(figure.subplots(rows, columns, squeeze=False).flat))
        figure.savefig(path, metadata={"Software": None})


def bars(axes: Axes, rows: RowAssembler) -> None:
    """Medians as horizontal bars, the first one on top, and a whisker from the lowest to the highest."""
    for y, row in enumerate(reversed(rows)):
        middle = row["samples_per_second"]
        axes.barh(y, middle, color=colour(row["name"]), height=0.7)
        axes.plot([row["lowest"], row["highest"]], [y, y], color="black", linewidth=1)
        text = f"{middle:,.0f}" if row["ratio_to_baseline"] is None else f"{row['ratio_to_baseline']:.2f}x"
        axes.annotate(text, (max(middle, row["highest"]), y), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.margins(x=0.12)
    axes.grid(False, axis="y")


def title(note: Mapping[str, Any], text: str) -> str:
    """Of a figure; it says so where something was emulated."""
    return f"{text} (emulated)" if "emulated" in note["settings"] else text
