"""Language models in the report: bits per byte against what they took, by position, and in a table."""

from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from matplotlib.axes import Axes

from counterflow.report.cli import main
from counterflow.report.groups import Comparison, compare
from counterflow.report.line_plots import save
from counterflow.report.plot_selection import plots
from counterflow.report.runs import read_run
from counterflow.report.tables import table, text_table
from counterflow.report.text_plots import bits_by_cost, bits_by_position
from tests.helpers.finished_runs import MakeRun
from tests.helpers.html_page import Page, sources

BATCH, LENGTH = 20, 5
TEXT = {"data.name": "stdlib", "data.length": LENGTH, "model.name": "gpt", "train.batch_size": BATCH}


def lm(
    make_run: MakeRun,
    name: str,
    algorithm: str,
    seed: int,
    held_out: dict[int, float],
    *,
    flops: dict[str, float] | None = None,
    second: float = 1.0,
    **options: Any,
) -> Path:
    """A finished run of two blocks, with the bits of the network by batch; the lower block has a bit more.

    Batch n took ``second`` * n seconds. The parts of a window of 5 are of 1, 1, 2 and 1 tokens.
    """
    local = algorithm != "bp"

    def blocks(bits: Any, lower: Any) -> list[Any]:
        return [lower if local else None, bits]

    rows = [
        {"event": "validation", "n": n, "seconds": second * n, "bits_per_byte": blocks(bits, bits + 1)}
        for n, bits in held_out.items()
    ]
    last = list(held_out.values())[-1] if held_out else None
    test = None if last is None else last + 0.5
    summary = {
        "bits_per_byte": test,
        "block_bits_per_byte": None if test is None else blocks(test, test + 1),
        "validation_bits_per_byte": last,
        "validation_block_bits_per_byte": None if last is None else blocks(last, last + 1),
        "block_bits_by_position": None if test is None else blocks([8.0, 4.0, 2.0, test], [8.0, 5.0, 5.0, 5.0]),
        "tokens_per_second": 1000.0 * seed,
        "flops": flops,
    }
    return make_run(name, algorithm, seed, 0.5, blocks=2, options={**TEXT, **options}, summary=summary, rows=rows)


def comparison(*paths: Path) -> Comparison:
    (one,) = compare(map(read_run, paths))
    return one


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [
        lm(make_run, "p", "bp", 1, {9: 4.0, 19: 2.0}, flops={"training": 3e6, "extra": 0}),
        lm(make_run, "b1", "bll", 1, {9: 4.0, 19: 3.0}, flops={"training": 3e6, "extra": 1e6}, second=2),
        lm(make_run, "b2", "bll", 2, {9: 4.5, 14: 4.0, 19: 2.5}, flops={"training": 3e6, "extra": 1e6}, second=4),
    ]


def curves(axis: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()]
        for line in axis.lines
        if not str(line.get_label()).startswith("_")
    }


def test_bits_against_tokens_seconds_and_flops(runs: list[Path]) -> None:
    """10 and 20 batches of 20 windows of 5 tokens; of two seeds, the batches that both have."""
    tokens, seconds, flops = bits_by_cost(comparison(*runs).groups).axes
    assert tokens.get_xlabel() == "tokens of training [thousands]"
    assert curves(tokens) == {"BP": [(1.0, 4.0), (2.0, 2.0)], "BLL": [(1.0, 4.25), (2.0, 2.75)]}
    assert seconds.get_xlabel() == "seconds of training"
    assert curves(seconds) == {"BP": [(9, 4.0), (19, 2.0)], "BLL": [(27, 4.25), (57, 2.75)]}
    assert flops.get_xlabel() == "FLOPs of training [billions]"
    assert curves(flops) == {"BP": [(0.6, 4.0), (1.2, 2.0)], "BLL": [(0.8, 4.25), (1.6, 2.75)]}
    assert tokens.get_ylabel() == "validation [bits per byte]"
    band = tokens.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((2.75 - stdev([3, 2.5]), 4.25 + stdev([4, 4.5])))


def test_groups_are_told_apart_by_blocks_schedule_and_heads(make_run: MakeRun) -> None:
    end = {19: 2.0}
    one = comparison(
        lm(make_run, "1", "bp", 1, end, schedule="1f1b"),
        lm(make_run, "2", "bp", 1, end, schedule="gpipe"),
        lm(make_run, "3", "predsim", 1, end, **{"algorithm.head.layers": 0}),
        lm(make_run, "4", "predsim", 1, end, **{"algorithm.head.layers": 2}),
    )
    axis = bits_by_cost(one.groups).axes[0]
    names = {"BP schedule=1f1b", "BP schedule=gpipe", "Pred-Sim layers=0", "Pred-Sim layers=2"}
    assert {str(bar.get_label()) for bar in axis.containers} == names, "a single point has a bar"


def test_a_group_without_flops_has_no_line_there(make_run: MakeRun) -> None:
    one = comparison(lm(make_run, "1", "bp", 1, {9: 4.0, 19: 2.0}))
    assert [len(curves(axis)) for axis in bits_by_cost(one.groups).axes] == [1, 1, 0]


def test_bits_by_position(runs: list[Path]) -> None:
    """Of the test: parts of 1, 1, 2 and 1 tokens, at their middles; backprop predicts at the top alone."""
    backprop, local = bits_by_position(comparison(*runs).groups).axes
    places = [1, 2, 3.5, 5]
    assert [line.get_xdata().tolist() for line in backprop.lines] == [[], places]
    assert backprop.lines[1].get_ydata().tolist() == [8, 4, 2, 2.5]
    low, high = local.lines
    assert low.get_xydata().tolist() == [[x, y] for x, y in zip(places, [8, 5, 5, 5], strict=True)]
    assert high.get_ydata().tolist() == [8, 4, 2, 3.25]
    assert local.get_ylabel() == "test [bits per byte]"


def test_the_plots_are_there_for_texts_alone(runs: list[Path], make_run: MakeRun, tmp_path: Path) -> None:
    kinds = [plot.kind for plot in plots(comparison(*runs))]
    assert "lm" in kinds
    assert "positions" in kinds
    images = make_run("images", "bll", rows=[{"event": "validation", "n": 9, "seconds": 1.0, "accuracy": [0.5] * 4}])
    kinds = [plot.kind for plot in plots(comparison(images))]
    assert "lm" not in kinds
    assert "positions" not in kinds
    assert text_table(comparison(images)).empty
    for plot in plots(comparison(*runs)):
        if plot.kind in ("lm", "positions") and plot.draw:
            save(plot.draw, tmp_path / plot.name)
            assert (tmp_path / f"{plot.name}.svg").stat().st_size > 1000


def test_the_table(runs: list[Path]) -> None:
    bp, bll = text_table(comparison(*runs)).to_dict("records")
    assert bp["test [bits per byte]"] == "2.5000"
    assert bll["test [bits per byte]"] == f"3.2500 ± {stdev([3.5, 3]):.4f}"
    assert bll["validation [bits per byte]"] == f"2.7500 ± {stdev([3, 2.5]):.4f}"
    assert (bp["test gap to BP [%]"], bll["test gap to BP [%]"]) == ("", "+30.00")
    assert bll["validation gap to BP [%]"] == "+37.50"
    assert (bp["test of blocks, bottom to top"], bll["test of blocks, bottom to top"]) == ("", "4.250, 3.250")
    assert bll["validation of blocks, bottom to top"] == "3.750, 2.750"
    assert (bp["extra FLOPs [%]"], bll["extra FLOPs [%]"]) == ("0.0", "33.3")
    assert (bp["tokens/s"], bll["tokens/s"]) == ("1,000", "1,500")


def test_there_is_no_gap_to_other_numbers_of_batches(make_run: MakeRun) -> None:
    longer = lm(make_run, "1", "bp", 1, {9: 2.0}, **{"train.steps": 99})
    content = longer / "summary.json"
    content.write_text(content.read_text().replace('"steps": 60', '"steps": 99'))
    rows = text_table(comparison(longer, lm(make_run, "2", "bll", 1, {9: 3.0})))
    assert "test gap to BP [%]" not in rows


def test_tables_leave_out_what_is_no_text(runs: list[Path], make_run: MakeRun) -> None:
    both = comparison(*runs, make_run("images", "bll"))
    assert len(table(both)) == 3
    assert [row["algorithm"] for row in text_table(both).to_dict("records")] == ["BP", "BLL"]


def test_report_and_page_show_them(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "| +30.00 | +37.50 |" in text
    for name in ("table1-cpu-lm", "table1-cpu-positions"):
        assert f"figures/{name}.png" in text
        assert (out / "figures" / f"{name}.png").exists()
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "4.250, 3.250" in page.text
    drawn = page.embedded()
    found = [[(s["name"][0], s["x"], s["mean"]) for s in sources(drawn[f"table1-cpu-lm-{k}"])] for k in (1, 2, 3)]
    assert found == [
        [("BP", [1, 2], [4, 2]), ("BLL", [1, 2], [4.25, 2.75])],
        [("BP", [9, 19], [4, 2]), ("BLL", [27, 57], [4.25, 2.75])],
        [("BP", [0.6, 1.2], [4, 2]), ("BLL", [0.8, 1.6], [4.25, 2.75])],
    ]
    low, high = sources(drawn["table1-cpu-positions-2"])
    assert (low["x"], low["mean"]) == ([1, 2, 3.5, 5], [8, 5, 5, 5])
    assert high["text"][3] == f"3.25 ± {stdev([3.5, 3]):.2f} (2 seeds)"
    (runs_table,) = sources(drawn["run-table"])
    assert runs_table["test [bits per byte]"] == [2.5, 3.5, 3.0]
