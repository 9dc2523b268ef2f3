"""Plots that answer the pointer: a point tells its numbers, and a line hides when its name in the legend is clicked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from bokeh.models import AdaptiveTicker, ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.models.annotations import Legend
from bokeh.models.renderers import DataRenderer, GlyphRenderer
from bokeh.plotting import figure
from bokeh.themes import Theme

from counterflow.plot_style import DARK_GREY, GRID
from counterflow.report.groups import ConfigGroup, labels
from counterflow.report.line_data import (
    Line,
    LinePlot,
    by_block,
    by_blocks,
    by_cost,
    by_exit,
    by_layers,
    metric_curves,
)
from counterflow.report.line_styles import line_styles, shade, shades_text
from counterflow.report.tables import mean_text
from counterflow.report.text_data import BITS, POSITION, by_costs, by_position, position_measure

_HEIGHT = 260
"""Pixels of the axes, without their labels and the legend."""
_HOVER = "hover"
"""Name of what tells its numbers: the markers of a line, or the line if it has none."""
_MARKERS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle",
    "v": "inverted_triangle",
    "P": "plus",
    "*": "star",
    "X": "x",
}
"""Names of matplotlib's markers in bokeh."""
THEME = Theme(
    json={
        "attrs": {
            "Plot": {"outline_line_color": None, "background_fill_color": None, "border_fill_color": None},
            "Axis": {
                "axis_label_text_font_style": "normal",
                "axis_label_text_color": DARK_GREY,
                "major_label_text_color": DARK_GREY,
                "axis_line_color": "#a0a0a0",
                "major_tick_line_color": "#a0a0a0",
                "minor_tick_line_color": None,
            },
            "Grid": {"grid_line_color": GRID},
            "Legend": {"border_line_color": None, "padding": 0, "margin": 0},
        }
    }
)


class Panel(NamedTuple):
    title: str
    """Empty if the caption of the plot says all."""
    figure: figure


def panels(kind: str, groups: Sequence[ConfigGroup]) -> Sequence[Panel]:
    """Draw a plot of ``plot_selection``; none for kinds that only have a picture."""
    return _KINDS[kind](groups) if kind in _KINDS else []


def _accuracies(data: LinePlot, *, whole: bool = False) -> Sequence[Panel]:
    """Lines with bars of a deviation; ``whole`` if x are whole numbers."""
    plot = _axes(data.x, data.y)
    if whole:
        plot.xaxis.ticker = AdaptiveTicker(mantissas=[1, 2, 5], min_interval=1)
    places = [x for line in data.lines for x in line.statistics.index]
    if data.reference is not None and places:
        name, style, statistics = data.reference
        ends = pd.concat([statistics, statistics]).set_axis([min(places), max(places)])
        _draw(plot, Line(name, style, ends), spread="band")
    for line in data.lines:
        _draw(plot, line, spread="bars")
    return [Panel("", _with_hover(plot))]


def _learning_curves(groups: Sequence[ConfigGroup]) -> Sequence[Panel]:
    """The whole network of all groups, and a panel for every group whose blocks predict."""
    accuracies = [metric_curves(group, "validation", "accuracy", unit=100) for group in groups]
    whole = _axes("batch", "validation accuracy [%]")
    for curves, name, style in zip(accuracies, labels(groups), line_styles(groups), strict=True):
        _draw(whole, Line(name, {**style, "marker": ""}, curves[-1]), spread="band")
    local = [
        _blocks(group, name, curves, "block", "validation accuracy [%]")
        for group, name, curves in zip(groups, labels(groups), accuracies, strict=True)
        if sum(not curve.empty for curve in curves) > 1
    ]
    return [Panel("whole network" if local else "", _with_hover(whole)), *local]


def _losses(groups: Sequence[ConfigGroup], metric: str, kind: str, y: str) -> Sequence[Panel]:
    curves = [metric_curves(group, "train", metric) for group in groups]
    return [_blocks(group, name, of, kind, y) for group, name, of in zip(groups, labels(groups), curves, strict=True)]


def _bits_by_cost(groups: Sequence[ConfigGroup]) -> Sequence[Panel]:
    result = []
    for data in by_costs(groups):
        plot = _axes(data.x, BITS)
        for line in data.lines:
            single = len(line.statistics) == 1
            drawn = line if single else Line(line.name, {**line.style, "marker": ""}, line.statistics)
            _draw(plot, drawn, spread="bars" if single else "band", form=".4f")
        result.append(Panel("", _with_hover(plot)))
    return result


def _bits_by_position(groups: Sequence[ConfigGroup]) -> Sequence[Panel]:
    measure = position_measure(groups)
    y = f"{measure.name} [bits per byte]"
    return [
        _blocks(group, name, by_position(group, measure), "block", y, x=POSITION)
        for group, name in zip(groups, labels(groups), strict=True)
    ]


_KINDS: Mapping[str, Callable[[Sequence[ConfigGroup]], Sequence[Panel]]] = {
    "curves": _learning_curves,
    "loss": lambda groups: _losses(groups, "loss", "block", "loss"),
    "associated-loss": lambda groups: _losses(groups, "associated", "layer", "associated loss"),
    "block-accuracy": lambda groups: _accuracies(by_block(groups), whole=True),
    "exits": lambda groups: _accuracies(by_exit(groups)),
    "blocks": lambda groups: _accuracies(by_blocks(groups), whole=True),
    "layers": lambda groups: _accuracies(by_layers(groups), whole=True),
    "flops": lambda groups: _accuracies(by_cost(groups)),
    "lm": _bits_by_cost,
    "positions": _bits_by_position,
}


def _blocks(
    group: ConfigGroup, name: str, curves: Sequence[pd.DataFrame], kind: str, y: str, x: str = "batch"
) -> Panel:
    """The means of all curves.

    Args:
        group: Gives the colour.
        name: Label of the group.
        curves: One a block, bottom to top.
        kind: Block or layer.
        y: Label of the y axis; one of losses is logarithmic if they are positive.
        x: Label of the x axis; one of positions is logarithmic.
    """
    algorithm, count = group.first["algorithm"], len(curves)
    is_loss = not y.endswith("]")
    logarithmic = is_loss and (pd.concat(curves)["mean"] > 0).all()
    plot = _axes(x, y, y_axis_type="log" if logarithmic else "linear", x_axis_type="log" if x == POSITION else "linear")
    for k, curve in enumerate(curves, 1):
        line = Line(f"{kind} {k}", {"color": shade(algorithm, k, count), "linestyle": "-", "marker": ""}, curve)
        _draw(plot, line, legend=False, form=".3g" if is_loss else ".2f")
    drawn = sum(not curve.empty for curve in curves)
    return Panel(shades_text(name, kind, count) if drawn > 1 else name, _with_hover(plot))


def _is_percent(label: str) -> bool:
    return label.endswith("[%]")


def _axes(x: str, y: str, **options: Any) -> figure:
    """Axes that leave dragging and scrolling to the page, so that a finger can move over them."""
    plot = figure(
        x_axis_label=x,
        y_axis_label=y,
        frame_height=_HEIGHT,
        sizing_mode="stretch_width",
        tools="box_zoom,reset,save",
        active_drag=None,
        active_scroll=None,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    if _is_percent(y):
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[00]")
    plot.add_layout(Legend(click_policy="hide", location="left"), "below")
    return plot


def _draw(plot: figure, line: Line, *, spread: str = "", legend: bool = True, form: str = ".2f") -> None:
    """Draw the means of a line, and a deviation around them.

    Args:
        plot: Axes to draw on.
        line: Without values, nothing is drawn.
        spread: A deviation as a ``"band"`` or ``"bars"``; none if empty.
        legend: Name it in the legend.
        form: Format of the numbers that a point tells.
    """
    if line.statistics.empty:
        return
    data, style = _source(line, form), line.style
    named: dict[str, Any] = {"source": data, "color": style["color"], **({"legend_label": line.name} if legend else {})}
    if spread == "band":
        plot.varea("x", "low", "high", fill_alpha=0.15, **named)
    elif spread == "bars":
        plot.segment("x", "low", "x", "high", **named)
    marker = style.get("marker")
    if style["linestyle"]:
        dash = _dash(style["linestyle"])
        plot.line("x", "mean", line_width=2, line_dash=dash, name="" if marker else _HOVER, **named)
    if marker:
        plot.scatter("x", "mean", size=8, marker=_MARKERS[marker], name=_HOVER, **named)


def _source(line: Line, form: str) -> ColumnDataSource:
    statistics = line.statistics
    spread = statistics["std"].astype(float).fillna(0)
    texts = [
        f"{mean_text(mean, deviation, form)} ({count:.0f} seed{'s' * (count != 1)})"
        for mean, deviation, count in statistics.itertuples(index=False)
    ]
    return ColumnDataSource(
        {
            "name": [line.name] * len(statistics),
            "x": statistics.index.tolist(),
            "mean": statistics["mean"].tolist(),
            "low": (statistics["mean"] - spread).tolist(),
            "high": (statistics["mean"] + spread).tolist(),
            "text": texts,
        }
    )


def _dash(linestyle: str | tuple[int, Iterable[float]]) -> str | list[int]:
    """Matplotlib's line style in bokeh's terms."""
    if isinstance(linestyle, str):
        return {"-": "solid", "--": "dashed"}[linestyle]
    return [round(2 * length) for length in linestyle[1]]


def _with_hover(plot: figure) -> figure:
    tooltip = f"<b>@name</b><br>{plot.xaxis.axis_label}: @x{{0,0.[00]}}<br>{plot.yaxis.axis_label}: @text"
    shown: list[DataRenderer] = [one for one in plot.renderers if isinstance(one, GlyphRenderer) and one.name == _HOVER]
    plot.add_tools(HoverTool(renderers=shown, tooltips=tooltip, line_policy="nearest"))
    return plot
