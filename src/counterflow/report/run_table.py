"""Table of all runs, which a click on a heading sorts."""

from collections.abc import Mapping, Sequence
from os.path import commonpath
from typing import Any

import pandas as pd
from bokeh.models import ColumnDataSource
from bokeh.models.widgets.tables import DataTable, NumberFormatter, StringFormatter, TableColumn

from counterflow.report.groups import TEST, TEST_BITS, VALIDATION, VALIDATION_BITS, Comparison
from counterflow.report.tables import SEQUENCES, VIEWS, option_texts

_FORMATS: Mapping[str, str] = {
    "blocks": "0",
    "seed": "0",
    "batches": "0,0",
    "test accuracy [%]": "0.00",
    "with test-time augmentation [%]": "0.00",
    "sequences right [%]": "0.00",
    "validation accuracy [%]": "0.00",
    "test [bits per byte]": "0.0000",
    "validation [bits per byte]": "0.0000",
    "samples/s": "0,0",
    "tokens/s": "0,0",
    "extra FLOPs [%]": "0.0",
    "effective parameters": "0,0",
    "affiliated parameters": "0,0",
}
"""Formats of the columns of numbers."""
_ROW = 28
_HEADING = 26
_SHOWN = 18.5
"""Rows beyond are reached by scrolling; half a row says that there are more."""
_BAR = 20
"""Height of a scroll bar."""
_LETTER = 7
"""Width of a letter with some space, in pixels."""
_SPACE = 20


def run_table(comparisons: Sequence[Comparison]) -> DataTable:
    """A row a run; columns without a value are left out."""
    frame = run_frame(comparisons)
    return DataTable(
        source=ColumnDataSource({name: frame[name].tolist() for name in frame}),
        columns=[_column(name, frame[name]) for name in frame],
        index_position=None,
        reorderable=False,
        autosize_mode="none",
        frozen_columns=1,
        row_height=_ROW,
        height=round(_HEADING + _ROW * min(len(frame), _SHOWN)) + _BAR,
        sizing_mode="stretch_width",
    )


def run_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Values of ``run_table``: numbers, with NaN where a run has none, and texts."""
    folder = commonpath([run.path.absolute().parent for comparison in comparisons for run in comparison.runs])
    rows: list[dict[str, Any]] = [
        {
            "algorithm": group.name,
            "blocks": run.summary["blocks"],
            "seed": run.summary["seed"],
            "test accuracy [%]": _percent(run.summary[TEST.field]),
            "with test-time augmentation [%]": _percent(run.summary[VIEWS.field]),
            "sequences right [%]": _percent(run.summary[SEQUENCES.field]),
            "validation accuracy [%]": _percent(run.summary[VALIDATION.field]),
            "test [bits per byte]": run.summary[TEST_BITS.field],
            "validation [bits per byte]": run.summary[VALIDATION_BITS.field],
            "samples/s": run.summary["samples_per_second"],
            "tokens/s": run.summary["tokens_per_second"],
            "extra FLOPs [%]": _percent(run.summary["extra_flops"]),
            "model": run.summary["model"],
            "data": run.summary["data"],
            "batches": run.summary["steps"],
            "effective parameters": run.summary["effective_parameters"],
            "affiliated parameters": run.summary["affiliated_parameters"],
            "experiment": comparison.title,
            "run": run.path.absolute().relative_to(folder).as_posix(),
            "options": options,
        }
        for comparison in comparisons
        for group, options in zip(comparison.groups, option_texts(comparison.groups), strict=True)
        for run in group.runs
    ]
    frame = pd.DataFrame(rows)
    return frame.loc[:, (frame.notna() & (frame != "")).any()]


def _percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share


def _column(name: str, values: pd.Series) -> TableColumn:
    if name in _FORMATS:
        number = NumberFormatter(format=_FORMATS[name], nan_format="", text_align="right")
        return TableColumn(field=name, title=name, formatter=number, width=_LETTER * len(name) + _SPACE)
    letters = max(len(name), values.str.len().max())
    return TableColumn(field=name, title=name, formatter=StringFormatter(), width=_LETTER * letters + _SPACE)
