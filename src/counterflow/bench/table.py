"""What ``bench.json`` notes of a suite, as tables for people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

Note = Mapping[str, Any]
"""Of a result: `counterflow.bench.row.Result.note`."""

_APART = (
    "name", "ranks", "samples_per_second", "lowest", "highest", "baseline", "ratio_to_baseline", "ratio_lowest",
    "ratio_highest", "wait_fraction", "peak_rss_bytes", "peak_cuda_bytes", "batch", "microbatches", "repeats",
    "way", "bytes", "mb_per_second_lowest", "mb_per_second_highest", "saved_mb_of_each", "messages_mb_of_the_most",
    "all_mb_of_the_most", "saved_over_bll", "all_over_bll", "model", "convolutions",
)  # fmt: skip
"""What has a column of its own, or is for figures alone."""


def table(note: Note) -> Table:
    """For a terminal: a line for each row, a column for whatever some row has."""
    header, lines = cells(note)
    found = Table(title=title(note), box=box.SIMPLE_HEAD, title_justify="left")
    for name in header:
        found.add_column(name, justify="left" if name == "name" else "right", no_wrap=name == "name")
    for line in lines:
        found.add_row(*line)
    return found


def markdown(notes: Sequence[Note]) -> str:
    """All suites, each with its settings, its goals and the command that measured it."""
    return "\n".join(line for note in notes for line in _section(note))


def _section(note: Note) -> Iterator[str]:
    header, lines = cells(note)
    yield f"## {title(note)}\n"
    yield f"`{note['command']}`, {note['seconds']:.0f} s; {note['hardware']}, torch {note['torch_version']}, "
    yield f"commit {(note['git_commit'] or 'unknown')[:12]}.\n"
    yield "; ".join(f"{name.replace('_', ' ')}: {_value(value)}" for name, value in note["settings"].items()) + ".\n"
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---' if name == 'name' else '---:' for name in header)}|"
    yield from (f"| {' | '.join(line)} |" for line in lines)
    yield ""
    yield from (f"- {goal}" for goal in goals(note))
    yield ""


def title(note: Note) -> str:
    return f"{note['suite']} (EMULATED)" if "emulated" in note["settings"] else str(note["suite"])


def goals(note: Note) -> Iterator[str]:
    for goal in note["goals"]:
        sign, verdict = "<=" if goal["at_most"] else ">=", "reached" if goal["met"] else "NOT reached"
        yield f"goal: {goal['text']}: {goal['reached']:.3g}, wanted {sign} {goal['wanted']:.3g}: {verdict}"


def cells(note: Note) -> tuple[list[str], list[list[str]]]:
    """The header, and a line for each row; a cell without a figure is empty."""
    rows = note["rows"]
    columns = {name: [cell(row) for row in rows] for name, cell in _COLUMNS.items()}
    for key in dict.fromkeys(key for row in rows for key in row if key not in _APART):
        columns[_SHORT.get(key, key.replace("_", " "))] = [show(key, row.get(key)) for row in rows]
    kept = {name: column for name, column in columns.items() if any(column)}
    return list(kept), [list(line) for line in zip(*kept.values(), strict=True)]


def show(key: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if key.startswith(("share", "prediction_error", "wait_fraction")):
        return f"{100 * value:.1f} %"
    return _value(value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _megabytes(key: str) -> Callable[[Note], str]:
    return lambda row: "" if row[key] is None else f"{row[key] / 1e6:,.0f}"


def _spread(row: Note) -> str:
    if row["lowest"] is None:
        return ""
    return f"{100 * (row['highest'] - row['lowest']) / row['samples_per_second']:.0f} %"


def _ratio(row: Note) -> str:
    return "" if row["ratio_to_baseline"] is None else f"{row['ratio_to_baseline']:.2f}"


def _ratios(row: Note) -> str:
    if row["ratio_lowest"] is None or row["name"] == row["baseline"]:
        return ""
    return f"{row['ratio_lowest']:.2f}-{row['ratio_highest']:.2f}"


_COLUMNS: dict[str, Callable[[Note], str]] = {
    "P": lambda row: str(row["ranks"]),
    "name": lambda row: str(row["name"]),
    "samples/s": lambda row: show("samples_per_second", row["samples_per_second"]),
    "spread": _spread,
    "ratio": _ratio,
    "from-to": _ratios,
    "waits": lambda row: "" if row["wait_fraction"] is None else f"{100 * row['wait_fraction']:.0f} %",
    "RSS [MB]": _megabytes("peak_rss_bytes"),
    "CUDA [MB]": _megabytes("peak_cuda_bytes"),
}
_SHORT = {
    "share_of_ideal": "of ideal",
    "predicted_samples_per_second": "predicted",
    "prediction_error": "off by",
    "calibrates_ms": "calibrates [ms]",
}
