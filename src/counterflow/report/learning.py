"""Figures against the batch: learning curves, and the associated loss of every layer."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from counterflow.report.curve import Curve, curves
from counterflow.report.group import Group, labels
from counterflow.report.style import canvas, legend, line_of, looks, percent, shade

_HEIGHT = 3.0


def accuracy_curves(group: Group) -> Sequence[Curve]:
    """In percent, on held-out data; the last one is that of the whole network."""
    return curves(group, "validation", "accuracy", unit=100)


def associated_curves(group: Group) -> Sequence[Curve]:
    """``|| b_i(s_i) - t_i ||^2`` of every component, mean over a batch of training."""
    return curves(group, "train", "associated")


def learning_curves(groups: Sequence[Group]) -> Figure:
    """Accuracy on held-out data; first all groups, then the blocks of every group whose blocks predict."""
    known = [(group, accuracy_curves(group)) for group in groups if accuracy_curves(group)]
    names = labels([group for group, _ in known])
    local = [i for i, (_, found) in enumerate(known) if sum(bool(curve.batches) for curve in found) > 1]
    columns = 1 if not local else 2
    figure, axes = canvas(-(-(1 + len(local)) // columns), columns, _HEIGHT if local else 4.2, sharey=True)
    for (_, found), name, look in zip(known, names, looks([group for group, _ in known]), strict=True):
        top = found[-1]
        axes[0].plot(top.batches, top.means, label=name, **line_of(look))
        axes[0].fill_between(top.batches, *top.band, color=look["color"], alpha=0.2, linewidth=0)
    for axis, i in zip(axes[1:], local, strict=False):
        group, found = known[i]
        _by_block(axis, group, found)
        axis.set_title(_title(names[i], "block", len(found)), loc="left")
    for axis in axes[1 + len(local) :]:
        axis.remove()
    for axis in axes[: 1 + len(local)]:
        axis.set_xlabel("batch")
        percent(axis, "validation accuracy [%]")
    if local:
        axes[0].set_title("whole network", loc="left")
    legend(figure, axes[0])
    return figure


def associated_losses(groups: Sequence[Group]) -> Figure:
    """A panel a group, a line a layer."""
    known = [(group, associated_curves(group)) for group in groups if associated_curves(group)]
    columns = min(2, len(known))
    figure, axes = canvas(-(-len(known) // columns), columns, _HEIGHT if len(known) > 1 else 4.2, sharey=True)
    for axis, (group, found), name in zip(axes, known, labels([group for group, _ in known]), strict=False):
        _by_block(axis, group, found)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(_title(name, "layer", len(found)), loc="left")
        axis.set_xlabel("batch")
        axis.set_ylabel("associated loss")
    for axis in axes[len(known) :]:
        axis.remove()
    return figure


def _title(name: str, what: str, count: int) -> str:
    return f"{name}: {what}s 1 (light) to {count} (dark)" if count > 1 else f"{name}: one {what}"


def _by_block(axis: Axes, group: Group, found: Sequence[Curve]) -> None:
    for k, curve in enumerate(found, 1):
        width = 1.8 if k == len(found) else 0.9
        axis.plot(curve.batches, curve.means, color=shade(group.first.algorithm, k, len(found)), linewidth=width)
