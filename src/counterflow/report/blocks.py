"""The accuracy that every block has by itself at the end, and the accuracy against the number of blocks or layers."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from counterflow.report.accuracy import Accuracy, measured
from counterflow.report.group import BASELINE, Group, labels, series
from counterflow.report.style import canvas, colour, legend, looks, percent

_HEIGHT = 4.2


def plain(groups: Sequence[Group]) -> Group | None:
    """Backprop in the fewest blocks: as the blocks are nothing to it, one line stands for all."""
    return min(
        (group for group in groups if group.first.algorithm == BASELINE),
        key=lambda group: group.first.blocks,
        default=None,
    )


def draw_plain(axis: Axes, groups: Sequence[Group], accuracy: Accuracy) -> None:
    """Backprop as a dashed line over the whole width, with a band of a standard deviation."""
    base = plain(groups)
    estimate = None if base is None else accuracy.of(base)
    if base is None or estimate is None:
        return
    look = colour(BASELINE)
    axis.axhline(estimate.mean, color=look, linestyle="--", label=f"{base.name} ({_seeds(estimate.count)})")
    axis.axhspan(estimate.mean - estimate.error, estimate.mean + estimate.error, color=look, alpha=0.12, linewidth=0)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def block_accuracies(groups: Sequence[Group]) -> Figure:
    """A line a group whose blocks predict, a point a block; backprop, which predicts only at the top, is dashed."""
    accuracy = measured(groups)
    local = [group for group in groups if _predicting(accuracy, group) > 1]
    figure, (axis,) = canvas(1, 1, _HEIGHT)
    draw_plain(axis, groups, accuracy)
    for group, name, look in zip(local, labels(local), looks(local), strict=True):
        points = [(k, e) for k, e in enumerate(accuracy.of_blocks(group), 1) if e is not None]
        errors = [e.error for _, e in points]
        axis.errorbar([k for k, _ in points], [e.mean for _, e in points], errors, label=name, capsize=3, **look)
    axis.set_xlabel("block (1 is next to the inputs)")
    percent(axis, f"{accuracy.name} accuracy of the block alone [%]")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, axis)
    return figure


def have_blocks(groups: Sequence[Group]) -> bool:
    return any(_predicting(measured(groups), group) > 1 for group in groups)


def _predicting(accuracy: Accuracy, group: Group) -> int:
    return sum(estimate is not None for estimate in accuracy.of_blocks(group))


def accuracy_by_blocks(groups: Sequence[Group]) -> Figure:
    """Of one network; backprop, to which blocks are nothing, is dashed."""
    accuracy = measured(groups)
    figure, (axis,) = canvas(1, 1, _HEIGHT)
    draw_plain(axis, groups, accuracy)
    others = [group for group in groups if group.first.algorithm != BASELINE]
    _against(axis, accuracy, series(others, [("blocks", "model.cut")], _blocks), _blocks)
    ticks = sorted({group.first.blocks for group in others})
    if ticks[-1] >= 8 * ticks[0]:
        axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("blocks")
    legend(figure, axis)
    return figure


def vary_in_blocks(groups: Sequence[Group]) -> bool:
    """Whether an algorithm other than backprop was run in several numbers of blocks."""
    return _vary([group for group in groups if group.first.algorithm != BASELINE], _blocks)


def accuracy_by_layers(groups: Sequence[Group]) -> Figure:
    """Of networks of one kind that differ in their number of layers."""
    accuracy = measured(groups)
    figure, (axis,) = canvas(1, 1, _HEIGHT)
    depth = sorted({key for group in groups for key in group.settings if key.startswith("model.")})
    attempts = [("blocks", *depth), (*depth,), ("model.cut",)]
    _against(axis, accuracy, series(groups, attempts, _layers), _layers)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("layers of the network")
    legend(figure, axis)
    return figure


def vary_in_layers(groups: Sequence[Group]) -> bool:
    return _vary(groups, _layers)


def _blocks(group: Group) -> int:
    return group.first.blocks


def _layers(group: Group) -> int:
    return group.first.layers or 0


def _vary(groups: Sequence[Group], x: Callable[[Group], int]) -> bool:
    accuracy = measured(groups)
    found: dict[str, set[int]] = {}
    for group in groups:
        if accuracy.of(group) is not None:
            found.setdefault(group.first.algorithm, set()).add(x(group))
    return any(len(values - {0}) > 1 for values in found.values())


def _against(
    axis: Axes, accuracy: Accuracy, lines: Sequence[tuple[str, Sequence[Group]]], x: Callable[[Group], int]
) -> None:
    for (name, groups), look in zip(lines, looks([groups[0] for _, groups in lines]), strict=True):
        points = [(x(group), e) for group in groups if x(group) and (e := accuracy.of(group)) is not None]
        points.sort(key=lambda point: point[0])
        errors = [e.error for _, e in points]
        axis.errorbar([n for n, _ in points], [e.mean for _, e in points], errors, label=name, capsize=3, **look)
    percent(axis, accuracy.axis)
