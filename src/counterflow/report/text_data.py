"""Data of the plots of language models: bits per byte of held-out text during training, and by position."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import pandas as pd

from counterflow.metrics.positions import segments
from counterflow.report.groups import STATISTICS, TEST_BITS, VALIDATION_BITS, ConfigGroup, Measure, labels
from counterflow.report.line_data import Line, metric_curves
from counterflow.report.line_styles import line_styles

BITS = "validation [bits per byte]"
"""Label of the y axis."""
POSITION = "position in the window (1 is the first)"
_SCALES = ("", " [thousands]", " [millions]", " [billions]", " [trillions]", " [quadrillions]", " [quintillions]")


class CostPlot(NamedTuple):
    """Bits per byte of held-out text against what it took so far."""

    x: str
    """Label of the x axis."""
    lines: Sequence[Line]


def with_texts(groups: Sequence[ConfigGroup]) -> Sequence[ConfigGroup]:
    """The groups with bits per byte of held-out text, by batch."""
    return [group for group in groups if len(_bits(group))]


def by_costs(groups: Sequence[ConfigGroup]) -> Sequence[CostPlot]:
    """Against tokens, seconds, and FLOPs of training: a line a group, a point an evaluation that all its runs have.

    Seconds are means over the runs of a group. A group that does not know a cost has no line there.
    """
    costs = {"tokens of training": _tokens, "seconds of training": _seconds, "FLOPs of training": _flops}
    return [_cost_plot(x, cost, groups) for x, cost in costs.items()]


def with_positions(groups: Sequence[ConfigGroup]) -> Sequence[ConfigGroup]:
    """The groups with bits per byte by position."""
    measure = position_measure(groups)
    return [group for group in groups if any(len(curve) for curve in by_position(group, measure))]


def position_measure(groups: Sequence[ConfigGroup]) -> Measure:
    """The bits per byte that more of ``groups`` have; on test data if both are as common. A plot never mixes them."""
    return max((TEST_BITS, VALIDATION_BITS), key=lambda measure: measure.of(groups)["mean"].count())


def by_position(group: ConfigGroup, measure: Measure) -> Sequence[pd.DataFrame]:
    """Bits per byte after training of every block, bottom to top: ``STATISTICS`` by the middle of each part.

    A block without a prediction has an empty curve; a group without a length or without bits has no curves.
    """
    length = group.settings.get("data.length")
    rows = group.summaries[measure.block_field.replace("per_byte", "by_position")].tolist()
    if not isinstance(length, int) or not any(rows):
        return []
    bounds = segments(length)
    places = [(start + 1 + end) / 2 for start, end in pairwise(bounds)]
    parts = [[one for one in block if one is not None] for block in zip(*filter(None, rows), strict=True)]
    frames = [pd.DataFrame(of_block, columns=places, dtype=float) for of_block in parts]
    return [frame.agg(STATISTICS).T.dropna(subset="mean") for frame in frames]


def _bits(group: ConfigGroup) -> pd.DataFrame:
    """``STATISTICS`` of the network by batch."""
    curves = metric_curves(group, "validation", "bits_per_byte")
    return curves[-1] if curves else pd.DataFrame(columns=STATISTICS)


def _cost_plot(x: str, cost: Callable[[ConfigGroup, pd.Index], pd.Series], groups: Sequence[ConfigGroup]) -> CostPlot:
    curves = [_bits(group) for group in groups]
    costs = [cost(group, curve.index) for group, curve in zip(groups, curves, strict=True)]
    greatest = max((float(one.max()) for one in costs if one.notna().any()), default=0.0)
    scale = max((i for i in range(len(_SCALES)) if 1000.0**i <= greatest), default=0)
    if x.startswith("seconds"):
        scale = 0
    lines = [
        Line(name, style, curve.set_axis(one / 1000.0**scale))
        for name, style, curve, one in zip(labels(groups), line_styles(groups), curves, costs, strict=True)
        if one.notna().all()
    ]
    return CostPlot(x + _SCALES[scale], lines)


def _samples(group: ConfigGroup, batches: pd.Index) -> pd.Series:
    """Samples of training after each of ``batches``, counted from 0."""
    return pd.Series((batches + 1) * float(group.settings.get("train.batch_size", "nan")), dtype=float)


def _tokens(group: ConfigGroup, batches: pd.Index) -> pd.Series:
    return _samples(group, batches) * float(group.settings.get("data.length", "nan"))


def _seconds(group: ConfigGroup, batches: pd.Index) -> pd.Series:
    seconds = pd.concat([run.seconds("validation") for run in group.runs])
    return seconds.groupby(level=0).mean().reindex(batches)


def _flops(group: ConfigGroup, batches: pd.Index) -> pd.Series:
    """Those of backprop of the network and what the rule needs beyond them."""
    flops = group.first["flops"] or {}
    return _samples(group, batches) * (flops.get("training", float("nan")) + flops.get("extra", float("nan")))
