"""The picture of a trace: the measured counterpart of Figure 2 (right) of the paper."""

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

from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import NAMES, Spans

_BATCHES = 10
"""Of training that are shown by default, with the fill before them."""


@dataclass(frozen=True)
class Panel:
    """One trace, all ranks of it on one clock."""

    title: str
    tracks: Sequence[RankTrace]


@dataclass(frozen=True)
class _Look:
    """Of a box."""

    label: str
    face: str
    ink: str = ""
    """Of the number in it; none if it has no number."""
    inner: bool = False
    """Whether it lies upon another box."""


_LOSS = _Look("loss", "#7fd1b9")
_TARGET = _Look("target", "#e69f00", "black")
_EVALUATION = _Look("evaluation", "#cc79a7", "black")
_LOOKS: Mapping[str, _Look] = {
    "target": _TARGET,
    "resend": _TARGET,
    "forward": _Look("forward", "#0072b2", "white"),
    "learn": _LOSS,
    "loss": _LOSS,
    "backward": _Look("backward", "#009e73", "white", inner=True),
    "update": _Look("update", "#004d36", inner=True),
    "send": _Look("send", "#d55e00", inner=True),
    "evaluate": _EVALUATION,
    "predict": _EVALUATION,
    "checkpoint": _Look("checkpoint", "#707070"),
    "receive": _Look("", "white", inner=True),
}
"""Of spans by their name, in the order of the legend, which leaves out what has no label. ``emit`` shows the colour of
the box around it, and waits show none."""

_TRAINING = [NAMES.index(name) for name in ("forward", "learn", "update")]

_SHORTEST = 1e-3
"""Seconds of a picture."""
_WIDTH = 12.0
_MARGIN = 1.1
"""Of the width, for the names of the rows."""
_ROW = 0.36
_HEIGHT = 40.0
"""Inches, at most, for all rows."""
_LETTER = 4.5
"""Points that a digit takes, with some room."""

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def draw(panels: Sequence[Panel], path: Path, window: range | None = None) -> None:
    """Draw ``panels`` under each other, as PNG: a row a rank, the top at the top, and the same seconds in all of them.

    ``window`` is the batches to show: every panel begins where its first forward pass of the first of them does, and
    the slowest one ends with the last. By default, the first ten batches of the trace and the fill before them.
    """
    begins, length = _extent(panels, window)
    counts = [len(panel.tracks) for panel in panels]
    row = min(_ROW, _HEIGHT / sum(counts))
    figure = Figure((_WIDTH, row * sum(counts) + 0.45 * len(panels) + 0.75), layout="constrained")
    with rc_context(_STYLE):
        heights = [count + 0.2 for count in counts]
        rows: Sequence[Axes] = list(
            figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights).flat
        )
        labels: set[str] = set()
        for axes, panel, begin in zip(rows, panels, begins, strict=True):
            labels |= _fill(axes, panel, begin, length)
        rows[-1].set_xlabel("milliseconds (white: waits; numbers: batches)")
        looks = {look.label: look for look in _LOOKS.values() if look.label in labels - {""}}
        handles = [Patch(facecolor=look.face) for look in looks.values()]
        figure.legend(handles, list(looks), loc="outside upper right", ncols=len(looks))
        figure.savefig(path, metadata={"Software": None})


def _extent(panels: Sequence[Panel], window: range | None) -> tuple[list[float], float]:
    """Where each panel begins, on its own clock, and the seconds that all of them show."""
    begins, lengths = [], []
    for panel in panels:
        batches = [int(spans["n"].min()) for track in panel.tracks if len(spans := _training(track))]
        first = min(batches, default=0)
        shown = window or range(first, first + _BATCHES)
        starts: list[float] = []
        ends = []
        for track in panel.tracks:
            spans = _training(track)
            later = spans[spans["n"] >= shown.start]["start"]
            starts += [_work(track)] if shown.start <= first else later[:1].tolist()
            ends.append(spans[spans["n"] < shown.stop]["end"])
        begins.append(min(starts, default=math.inf))
        lengths.append(max((float(times.max()) for times in ends if len(times)), default=0.0) - begins[-1])
    return begins, max(max(lengths), _SHORTEST)


def _work(track: RankTrace) -> float:
    """When a rank first did something else than wait."""
    spans = track.spans
    if not len(spans):
        return math.inf
    waits = spans[(spans["name"] == NAMES.index("receive")) & (spans["start"] < spans["end"][0])]
    return float(waits["end"][0] if len(waits) else spans["start"][0])


def _training(track: RankTrace) -> Spans:
    return track.spans[np.isin(track.spans["name"], _TRAINING)]


def _fill(axes: Axes, panel: Panel, begin: float, length: float) -> set[str]:
    """Draw all boxes of a panel; returns what the legend has to tell."""
    axes.set_title(panel.title)
    axes.set_xlim(0, 1e3 * length)
    tracks = sorted(panel.tracks, key=lambda track: track.rank)
    axes.set_ylim(-0.5, len(tracks) - 0.5)
    axes.set_yticks(range(len(tracks)), [_name(track) for track in tracks])
    point = length / (72 * (_WIDTH - _MARGIN))
    labels = set()
    for y, track in enumerate(tracks):
        spans = track.spans[(track.spans["end"] >= begin) & (track.spans["start"] < begin + length)]
        inner = spans[np.isin(spans["name"], [NAMES.index(name) for name, look in _LOOKS.items() if look.inner])]
        for name, look in _LOOKS.items():
            found = spans[spans["name"] == NAMES.index(name)]
            if not len(found):
                continue
            labels.add(look.label)
            _boxes(axes, y, found, look, begin, point)
            if look.ink:
                _numbers(axes, y, found, inner[:0] if look.inner else inner, look, begin, point)
    return labels


def _name(track: RankTrace) -> str:
    lanes = sorted(track.lanes)
    if len(lanes) == 1:
        return f"rank {track.rank}, {track.lanes[lanes[0]]}"
    return f"rank {track.rank}, blocks {', '.join(map(str, lanes))}" if lanes else f"rank {track.rank}"


def _boxes(axes: Axes, y: int, spans: Spans, look: _Look, begin: float, point: float) -> None:
    """A box a span; it has no edge if that would hide it, a ``point`` being so many seconds."""
    starts, widths = spans["start"] - begin, spans["end"] - spans["start"]
    axes.broken_barh(
        list(zip((1e3 * starts).tolist(), (1e3 * widths).tolist(), strict=True)),
        (y - 0.4, 0.8),
        facecolor=look.face,
        edgecolor="white",
        linewidth=np.where(widths > 3 * point, 0.4, 0.0).tolist(),
        zorder=3 if look.inner else 2,
    )


def _numbers(axes: Axes, y: int, spans: Spans, inner: Spans, look: _Look, begin: float, point: float) -> None:
    """The batch of each span, where there is room for it, in the longest stretch that none of ``inner`` covers."""
    for start, end, n in zip(spans["start"].tolist(), spans["end"].tolist(), spans["n"].tolist(), strict=True):
        first, last = np.searchsorted(inner["start"], [start, end])
        edges = [start, *(edge for span in inner[first:last] for edge in (span["start"], span["end"])), end]
        left, right = max(zip(edges[::2], edges[1::2], strict=True), key=lambda stretch: stretch[1] - stretch[0])
        if right - left >= _LETTER * len(str(n)) * point:
            middle = 1e3 * ((left + right) / 2 - begin)
            axes.text(middle, y, str(n), color=look.ink, size=7, ha="center", va="center", clip_on=True, zorder=4)
