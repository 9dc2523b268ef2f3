"""The report reads the files that a run writes today."""

from pathlib import Path

from counterflow.report.groups import compare
from counterflow.report.plot_selection import plots
from counterflow.report.runs import read_run
from counterflow.report.tables import table
from tests.helpers.runs import SMALL, configuration, train_rank

TINY = ("model.width=8", "train.steps=10", "data.validation=0.2")


def test_a_real_run(tmp_path: Path) -> None:
    summaries = [
        train_rank(0, 1, "", configuration(*SMALL, *TINY, f"algorithm={name}"), 0.0, 0, tmp_path / name)
        for name in ("bp", "bll")
    ]
    (comparison,) = compare(read_run(tmp_path / name) for name in ("bp", "bll"))
    result = table(comparison)
    for summary, cells in zip(summaries, result.to_dict("records"), strict=True):
        assert cells["test accuracy [%]"] == f"{100 * summary['test_accuracy']:.2f}"
        assert cells["validation accuracy [%]"] == f"{100 * summary['validation_accuracy']:.2f}"
        assert cells["samples/s"] == f"{summary['samples_per_second']:,.0f}"
    assert "test gap to BP [points]" in result
    kinds = [plot.name.removeprefix(comparison.slug) for plot in plots(comparison)]
    assert kinds == ["-curves", "-loss", "-block-accuracy", "-exits"]
