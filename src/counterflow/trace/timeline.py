"""Timeline picture of a trace: the measured counterpart of Figure 2 (right) of the paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from counterflow.plot_style import BLUE, GREEN, ORANGE, PINK, RED, STYLE
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import NAMES, Spans

_BATCHES = 10
"""Training batches shown by default, after the pipeline fill."""


@dataclass(frozen=True)
class Panel:
    """One trace with its title; all ranks are on one clock."""

    title: str
    traces: Sequence[RankTrace]


@dataclass(frozen=True)
class _BoxStyle:
    label: str
    """Entry in the legend; none if empty."""
    color: str
    text: str = ""
    """Color of the batch number in the box; no number if empty."""
    inner: bool = False
    """True for boxes within other boxes."""


_LOSS = _BoxStyle("loss", "#7fd1b9")
_TARGET = _BoxStyle("target", ORANGE, "black")
_EVALUATION = _BoxStyle("evaluation", PINK, "black")
_MEETING = _BoxStyle("meeting of copies", "#b8a9e0")
_STYLES: Mapping[str, _BoxStyle] = {
    "target": _TARGET,
    "resend": _TARGET,
    "forward": _BoxStyle("forward", BLUE, "white"),
    "learn": _LOSS,
    "loss": _LOSS,
    "backward": _BoxStyle("backward", GREEN, "white", inner=True),
    "update": _BoxStyle("update", "#004d36", inner=True),
    "send": _BoxStyle("send", RED, inner=True),
    "scatter": _MEETING,
    "reduce": _MEETING,
    "gather": _MEETING,
    "evaluate": _EVALUATION,
    "predict": _EVALUATION,
    "checkpoint": _BoxStyle("checkpoint", "#707070"),
    "receive": _BoxStyle("", "white", inner=True),
}
"""Styles by span name, in the order of the legend. ``emit`` has none: it shows the color of the box around it. Waits
are white."""

_TRAINING = [NAMES.index(name) for name in ("forward", "learn", "update")]

_SHORTEST = 1e-3
"""Smallest width of the time axis, in seconds."""
_WIDTH = 12.0
_MARGIN = 1.1
"""Inches of the width for the names of the rows."""
_ROW = 0.36
_HEIGHT = 40.0
"""Largest height of all rows, in inches."""
_LETTER = 4.5
"""Width of a digit with some space, in points."""

_RC: Any = {
    **STYLE,
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.spines.left": False,
    "axes.grid": False,
    "ytick.left": False,
}


def draw(panels: Sequence[Panel], path: Path, window: range | None = None) -> None:
    """Draw ``panels`` below each other as a PNG, with a row per rank and the same time scale.

    Args:
        panels: the traces; the highest rank is at the top of its panel.
        path: file to write.
        window: batches to show. Every panel begins with its first forward pass of the first batch, and the slowest one
            ends with the last batch. By default, the first ten batches of the trace and the pipeline fill.
    """
    begins, length = _extent(panels, window)
    counts = [len(panel.traces) for panel in panels]
    row = min(_ROW, _HEIGHT / sum(counts))
    figure = Figure((_WIDTH, row * sum(counts) + 0.45 * len(panels) + 0.75), layout="constrained")
    with rc_context(_RC):
        figure.subplots(len(panels), 1, sharex=True, height_ratios=[count + 0.2 for count in counts])
        labels: set[str] = set()
        for axes, panel, begin in zip(figure.axes, panels, begins, strict=True):
            labels |= _fill(axes, panel, begin, length)
        figure.axes[-1].set_xlabel("milliseconds (white: waits; numbers: batches)")
        styles = {style.label: style for style in _STYLES.values() if style.label in labels - {""}}
        figure.legend(
            [Patch(facecolor=style.color) for style in styles.values()],
            list(styles),
            loc="outside upper right",
            ncols=len(styles),
        )
        figure.savefig(path, metadata={"Software": None})


def _extent(panels: Sequence[Panel], window: range | None) -> tuple[list[float], float]:
    """Start of each panel on its own clock, and the length of all panels, in seconds."""
    begins, lengths = [], []
    for panel in panels:
        spans = np.concatenate([trace.spans[np.isin(trace.spans["name"], _TRAINING)] for trace in panel.traces])
        first = int(spans["n"].min()) if len(spans) else 0
        shown = window or range(first, first + _BATCHES)
        later = float(spans["start"][spans["n"] >= shown.start].min(initial=math.inf))
        begins.append(min(map(_work, panel.traces)) if shown.start <= first else later)
        lengths.append(float(spans["end"][spans["n"] < shown.stop].max(initial=0.0)) - begins[-1])
    return begins, max(max(lengths), _SHORTEST)


def _work(trace: RankTrace) -> float:
    """Time at which a rank first did anything but wait."""
    spans = trace.spans
    if not len(spans):
        return math.inf
    waits = spans[(spans["name"] == NAMES.index("receive")) & (spans["start"] < spans["end"][0])]
    return float(waits["end"][0] if len(waits) else spans["start"][0])


def _fill(axes: Axes, panel: Panel, begin: float, length: float) -> set[str]:
    """Draw all boxes of a panel; returns the labels used."""
    traces = sorted(panel.traces, key=lambda trace: trace.rank)
    axes.set(title=panel.title, xlim=(0, 1e3 * length), ylim=(-0.5, len(traces) - 0.5))
    axes.set_yticks(range(len(traces)), [_name(trace) for trace in traces])
    point = length / (72 * (_WIDTH - _MARGIN))
    labels = set()
    for y, trace in enumerate(traces):
        spans = trace.spans[(trace.spans["end"] >= begin) & (trace.spans["start"] < begin + length)]
        inner = spans[np.isin(spans["name"], [NAMES.index(name) for name, style in _STYLES.items() if style.inner])]
        for name, style in _STYLES.items():
            found = spans[spans["name"] == NAMES.index(name)]
            if not len(found):
                continue
            labels.add(style.label)
            _boxes(axes, y, found, style, begin, point)
            if style.text:
                _numbers(axes, y, found, inner[:0] if style.inner else inner, style, begin, point)
    return labels


def _name(trace: RankTrace) -> str:
    lanes = sorted(trace.lanes)
    if len(lanes) == 1:
        return f"rank {trace.rank}, {trace.lanes[lanes[0]]}"
    if any(trace.lanes[lane] != f"block {lane}" for lane in lanes):
        return f"rank {trace.rank}, {', '.join(trace.lanes[lane] for lane in lanes)}"
    return f"rank {trace.rank}, blocks {', '.join(map(str, lanes))}" if lanes else f"rank {trace.rank}"


def _boxes(axes: Axes, y: int, spans: Spans, style: _BoxStyle, begin: float, point: float) -> None:
    """Draw a box per span, from ``begin`` on; boxes too narrow for an edge get none. ``point`` is in seconds."""
    starts, widths = spans["start"] - begin, spans["end"] - spans["start"]
    axes.broken_barh(
        list(zip((1e3 * starts).tolist(), (1e3 * widths).tolist(), strict=True)),
        (y - 0.4, 0.8),
        facecolor=style.color,
        edgecolor="white",
        linewidth=np.where(widths > 3 * point, 0.4, 0.0).tolist(),
        zorder=3 if style.inner else 2,
    )


def _numbers(axes: Axes, y: int, spans: Spans, inner: Spans, style: _BoxStyle, begin: float, point: float) -> None:
    """Write the batch of each span, if it fits, into the longest stretch that none of ``inner`` covers."""
    for start, end, n in zip(spans["start"].tolist(), spans["end"].tolist(), spans["n"].tolist(), strict=True):
        first, last = np.searchsorted(inner["start"], [start, end])
        edges = [start, *(edge for span in inner[first:last] for edge in (span["start"], span["end"])), end]
        left, right = max(zip(edges[::2], edges[1::2], strict=True), key=lambda stretch: stretch[1] - stretch[0])
        if right - left >= _LETTER * len(str(n)) * point:
            middle = 1e3 * ((left + right) / 2 - begin)
            axes.text(middle, y, str(n), color=style.text, size=7, ha="center", va="center", clip_on=True, zorder=4)
