"""``index.html``: a page that needs nothing but itself, with a table of runs that sorts and plots that tell numbers."""

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.model import Model
from bokeh.resources import Resources
from jinja2 import Environment

from counterflow.report.content import FIGURES, READING, TEXTS, Report, facts, notes
from counterflow.report.groups import Comparison
from counterflow.report.interactive_plots import THEME, panels
from counterflow.report.plot_selection import Plot, plots
from counterflow.report.run_table import run_table
from counterflow.report.runs import Run
from counterflow.report.tables import TESTED_AGAIN, numeric_columns, run_records, table, text_table

_TEMPLATE = Path(__file__).with_name("page.html")
_RESOURCES = Resources(mode="inline", log_level="warn", components=["bokeh", "bokeh-widgets", "bokeh-tables"])


class _Embedded(NamedTuple):
    """A table or a plot that BokehJS draws into the element ``name``."""

    title: str
    name: str
    json: str


def write_page(folder: Path, report: Report) -> None:
    """Make ``folder/index.html`` from the runs, and from the files of ``document.write_report``."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    runs = [run for comparison in report.comparisons for run in comparison.runs]
    html = template.render(
        report=report,
        reading=READING,
        text_caption=TEXTS,
        bokeh=_RESOURCES.render_js(),
        runs=_embedded("", "run-table", run_table(report.comparisons)),
        sections=[_section(folder, comparison) for comparison in report.comparisons],
        timelines=[*_timelines(folder, runs)],
    )
    (folder / "index.html").write_text(html, encoding="utf-8")


def _section(folder: Path, comparison: Comparison) -> dict[str, Any]:
    """Variables of the template for a comparison."""
    runs = comparison.runs
    again = [f"{run.path.as_posix()}: {run.tests} times" for run in runs if run.tests > 1]
    return {
        "name": comparison.slug,
        "title": comparison.title,
        "results": _cells(table(comparison)),
        "texts": _cells(text_table(comparison)),
        "again": f"{TESTED_AGAIN} Test data was looked at more than once: {', '.join(again)}." if again else "",
        "notes": notes(runs),
        "plots": [_plot(folder, plot, runs) for plot in plots(comparison)],
        "facts": facts(runs),
        "records": _cells(run_records(runs)),
    }


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    return {"names": list(frame), "numeric": numeric_columns(frame), "rows": frame.to_numpy().tolist()}


def _plot(folder: Path, plot: Plot, table_runs: Sequence[Run]) -> dict[str, Any]:
    """Variables of the template for a plot, which has panels, or else an image."""
    drawn = panels(plot.kind, plot.groups)
    runs = [run for group in plot.groups for run in group.runs]
    return {
        "caption": plot.caption,
        "panels": [_embedded(panel.title, f"{plot.name}-{k}", panel.figure) for k, panel in enumerate(drawn, 1)],
        "image": "" if drawn else _data_url(folder / FIGURES / f"{plot.name}.svg", "image/svg+xml"),
        "runs": [run.path.as_posix() for run in runs] if len(runs) < len(table_runs) else [],
    }


def _timelines(folder: Path, runs: Sequence[Run]) -> Iterator[dict[str, str]]:
    """Variables of the template for the traces of runs."""
    for run in runs:
        image, trace = run.path / "timeline.png", run.path / "trace.json"
        if image.exists():
            yield {
                "run": run.path.as_posix(),
                "image": _data_url(image, "image/png"),
                "trace": quote(relpath(trace.absolute(), folder.absolute())) if trace.exists() else "",
            }


def _data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"


def _embedded(title: str, name: str, model: Model) -> _Embedded:
    """JSON of ``model``, which is a function of the data alone: bokeh's own ids count on from page to page."""
    ids: dict[str, str] = {}

    def renumbered(node: dict[str, Any]) -> dict[str, Any]:
        return {**node, "id": ids.setdefault(node["id"], f"{name}-{len(ids)}")} if "id" in node else node

    item = dict(json_item(model, target=ID(name), theme=THEME))
    item = json.loads(json.dumps(item, allow_nan=False), object_hook=renumbered)
    text = json.dumps({**item, "root_id": ids[item["root_id"]]}, separators=(",", ":"))
    return _Embedded(title, name, text.replace("<", "\\u003c"))  # no text can end the script
