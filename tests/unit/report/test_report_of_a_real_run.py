"""What a run leaves today is what the report reads."""

from pathlib import Path

from counterflow.report.comparison import compare
from counterflow.report.figures import figures
from counterflow.report.run import read
from counterflow.report.table import table
from tests.helpers.runs import SMALL, train_rank

TINY = ("model.width=8", "train.steps=10", "data.validation=0.2")


def test_a_real_run(tmp_path: Path) -> None:
    summaries = [
        train_rank(0, 1, "", [*SMALL, *TINY, f"algorithm={name}"], 0.0, 0, tmp_path / name) for name in ("bp", "bll")
    ]
    (comparison,) = compare(read(tmp_path / name) for name in ("bp", "bll"))
    found = table(comparison)
    for summary, row in zip(summaries, found.rows, strict=True):
        cells = dict(zip(found.header, row, strict=True))
        assert cells["test accuracy [%]"] == f"{100 * summary['test_accuracy']:.2f}"
        assert cells["validation accuracy [%]"] == f"{100 * summary['validation_accuracy']:.2f}"
        assert cells["samples/s"] == f"{summary['samples_per_second']:,.0f}"
    assert "test gap to BP [points]" in found.header
    kinds = [plot.name.removeprefix(comparison.slug) for plot in figures(comparison)]
    assert kinds == ["-curves", "-block-accuracy"]
