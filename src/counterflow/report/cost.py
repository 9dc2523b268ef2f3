"""Accuracy against what a local rule computes beside the network."""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from counterflow.report.accuracy import measured
from counterflow.report.blocks import draw_plain
from counterflow.report.group import BASELINE, Group, labels
from counterflow.report.style import canvas, colour, legend, percent

_OFFSETS = [(dx, dy) for dy, dx in product((0, 11, -11, 22, -22, 33, -33, 44, -44), (7, -7))]
"""Where a label may stand, in points from its dot: right or left of it, then above, then below, then further away."""


def counted(groups: Sequence[Group]) -> Sequence[Group]:
    """Those beside backprop whose extra work is known."""
    return [group for group in groups if group.first.algorithm != BASELINE and group.first.extra_flops is not None]


def vary_in_cost(groups: Sequence[Group]) -> bool:
    return len({group.first.extra_flops for group in counted(groups)}) > 1


def accuracy_by_cost(groups: Sequence[Group]) -> Figure:
    """A labelled point a group; backprop, which computes nothing beside the network, is dashed."""
    accuracy = measured(groups)
    known = [(g, e) for g in counted(groups) if (e := accuracy.of(g)) is not None]
    figure, (axis,) = canvas(1, 1, 4.6)
    draw_plain(axis, groups, accuracy)
    texts = labels([group for group, _ in known])
    points = []
    for group, estimate in known:
        extra = 100 * (group.first.extra_flops or 0.0)
        axis.errorbar(
            [extra],
            [estimate.mean],
            [estimate.error],
            capsize=3,
            color=colour(group.first.algorithm),
            linestyle="",
            marker="o",
        )
        points.append((extra, estimate.mean))
    axis.set_xlabel("extra FLOPs of training a sample [% of backprop's]")
    percent(axis, accuracy.axis)
    axis.margins(x=0.12, y=0.15)
    legend(figure, axis)
    _label(figure, axis, points, texts)
    return figure


def _label(figure: Figure, axis: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Every text beside its point, at the first place where it covers no other text or point and stays in the axes."""
    figure.draw_without_rendering()  # places the axes, so that boxes of texts are known
    dots = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axis.transData.transform(points)]
    taken: list[Bbox] = []
    for i, (point, text) in enumerate(zip(points, texts, strict=True)):
        places: list[tuple[int, int, Annotation, Bbox]] = []
        for dx, dy in _OFFSETS:
            note = axis.annotate(
                text,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )
            box = note.get_window_extent()
            hidden = sum(box.overlaps(other) for other in (*taken, *dots[:i], *dots[i + 1 :]))
            outside = not all(axis.bbox.contains(*corner) for corner in (box.p0, box.p1))
            places.append((hidden + outside, len(places), note, box))
            if not hidden and not outside:
                break
        best = min(places, key=lambda place: place[:2])
        for _, _, note, _ in places:
            if note is not best[2]:
                note.remove()
        taken.append(best[3])
