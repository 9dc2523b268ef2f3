"""Charts that the suites share. They are drawn from ``bench.json`` alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.plot_style import ALGORITHMS, BROWN, ORANGE, PURPLE, RED, SKY, STYLE, TEAL, WIDTH

_COLOURS = {
    "BLL": ALGORITHMS["bll"],
    "AL": ALGORITHMS["al"],
    "Pred-Sim": ALGORITHMS["predsim"],
    "1F1B": RED,
    "GPipe": ORANGE,
    "interleaved": BROWN,
    "ZBV": PURPLE,
    "DDP": SKY,
    "PipeDream": TEAL,
}


def colour(name: str) -> str:
    """Colour of a case, by the first word of its name."""
    return _COLOURS.get(name.split()[0].rstrip(","), "#606060")


@contextmanager
def chart(path: Path, rows: int, columns: int, height: float) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A figure to draw into, saved as PNG when the context ends.

    Args:
        path: The PNG file.
        rows: Rows of axes.
        columns: Columns of axes.
        height: Inches of one row.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path, metadata={"Software": None})


def curves(
    rows: Sequence[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by the ``label`` of their curve."""
    return {name: [row for row in rows if label(row) == name] for name in dict.fromkeys(map(label, rows))}


def log_ticks(axes: Axes, ticks: Mapping[int, str]) -> None:
    """Make the x axis logarithmic to base 2, with these texts at these values."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def draw_bars(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Medians in samples/s as horizontal bars, the first on top; a whisker spans the lowest to the highest round.

    Behind it is the ratio to the baseline, or why there is none.
    """
    with chart(path, 1, 1, 0.35 * len(rows) + 1) as (_, (axes,)):
        for y, row in enumerate(reversed(rows)):
            middle = row["samples_per_second"]
            axes.barh(y, middle, color=colour(row["name"]), height=0.7)
            axes.plot([row["lowest"], row["highest"]], [y, y], color="black", linewidth=1)
            end = max(middle, row["highest"]), y
            ratio = row["ratio_to_baseline"]
            text = row["doubt"] or "" if ratio is None else f"{ratio:.2f}x"
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.margins(x=0.12)
        axes.grid(False, axis="y")
        axes.set(xlabel="samples/s", title=title)


def draw_legend(figure: Figure, axes: Axes) -> None:
    """One legend of a figure below all of its axes, with the labels of ``axes``."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
