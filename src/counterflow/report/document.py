"""Report on disk: ``report.md`` with its tables, and the plots it shows."""

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from counterflow.report.content import FIGURES, READING, TEXTS, Report, facts, notes
from counterflow.report.groups import Comparison
from counterflow.report.line_plots import save
from counterflow.report.plot_selection import Plot, plots
from counterflow.report.runs import Run
from counterflow.report.tables import TESTED_AGAIN, numeric_columns, run_records, table, text_table


def write_report(folder: Path, report: Report) -> None:
    """Make ``folder/report.md`` and ``folder/figures/``; plots of an earlier report are removed."""
    page = folder / "report.md"
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    earlier = re.findall(rf"\]\({FIGURES}/([\w.-]+)\.png\)", page.read_text()) if page.exists() else []
    for name, ending in product(set(earlier), ("png", "svg")):
        (folder / FIGURES / f"{name}.{ending}").unlink(missing_ok=True)
    lines = [f"# {report.title}", f"Of {report.count}; made by\n\n```\n{report.command}\n```", READING]
    for comparison in report.comparisons:
        shown = []
        for plot in plots(comparison):
            if plot.draw is not None:
                save(plot.draw, folder / FIGURES / plot.name)
                shown.append(plot)
        lines += [f"## {comparison.title}", *_section(comparison, shown)]
    if report.left_out:
        lines.append("## Left out")
    lines += [_items(reason, [_code(path) for path in paths]) for reason, paths in report.left_out.items()]
    page.write_text("\n\n".join(lines) + "\n")


def _section(comparison: Comparison, shown: Sequence[Plot]) -> Iterator[str]:
    runs = comparison.runs
    yield markdown(table(comparison))
    if not (texts := text_table(comparison)).empty:
        yield f"{TEXTS}."
        yield markdown(texts)
    again = [f"{_code(run.path)}: {run.tests} times" for run in runs if run.tests > 1]
    if again:
        yield _items(f"{TESTED_AGAIN} Test data was looked at more than once", again)
    yield from notes(runs)
    records = run_records(runs)[["run", "seed", "configuration", "fingerprint"]]
    yield _folded(runs, markdown(records.assign(**records.drop(columns="seed").map(_code))))
    for plot in shown:
        image = f"{FIGURES}/{plot.name}"
        yield f"![{plot.caption}]({image}.png)"
        yield f"{plot.caption} ([SVG]({image}.svg))"
        of_plot = [run for group in plot.groups for run in group.runs]
        yield _folded(of_plot, "All runs of the table." if len(of_plot) == len(runs) else _configurations(of_plot))


def _folded(runs: Sequence[Run], text: str) -> str:
    """Facts about ``runs`` and ``text``, as Markdown that can be folded away."""
    lines = [f"- {name}: {values}" for name, values in facts(runs).items()]
    return "\n".join(["<details><summary>Where this comes from</summary>", "", *lines, "", text, "", "</details>"])


def _configurations(runs: Sequence[Run]) -> str:
    return f"Configurations: {', '.join(map(_code, sorted(run_records(runs)['configuration'])))}."


def _code(text: object) -> str:
    return f"`{text}`"


def _items(name: str, texts: Sequence[str]) -> str:
    return "\n".join([f"{name}:\n", *(f"- {text}" for text in texts)])


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown; columns of numbers are aligned to the right."""
    rows = [
        frame.columns,
        ["---:" if number else "---" for number in numeric_columns(frame)],
        *frame.itertuples(index=False),
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
