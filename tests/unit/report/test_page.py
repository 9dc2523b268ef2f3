"""``index.html``: whole in itself, and with the numbers of the runs."""

import json
from base64 import b64decode
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from counterflow.report.cli import main
from tests.helpers.finished_runs import MakeRun, run_maker
from tests.helpers.html_page import Page, sources

NUMBERS = {
    "test accuracy [%]": ("test_accuracy", 100),
    "validation accuracy [%]": ("validation_accuracy", 100),
    "samples/s": ("samples_per_second", 1),
    "seed": ("seed", 1),
    "blocks": ("blocks", 1),
    "batches": ("steps", 1),
    "effective parameters": ("effective_parameters", 1),
}


def rows(seed: int) -> list[dict[str, Any]]:
    """Held-out accuracy and loss of two blocks, at two batches."""
    return [
        row
        for n in (0, 9)
        for row in (
            {"event": "train", "n": n, "seconds": 0.1, "loss": [2.0 / (n + seed), 1.0 / (n + seed)]},
            {"event": "validation", "n": n, "seconds": 0.1, "accuracy": [0.5 + n / 100, 0.6 + (n + seed) / 100]},
        )
    ]


def finished_runs(folder: Path) -> Path:
    make_run = run_maker(folder)
    exits = [{"block": 1, "flops": 2e6, "test_accuracy": 0.5}, {"block": 2, "flops": 4e6, "test_accuracy": 0.75}]
    for seed, accuracy in ((1, 0.9), (2, 0.92)):
        summary = {
            "validation_accuracy": accuracy - 0.1,
            "block_accuracy": [0.7, accuracy],
            "exits": exits,
            "config_hash": f"{seed}0fe{seed}",
        }
        path = make_run(f"bll-{seed}", "bll", seed, accuracy, blocks=2, summary=summary, rows=rows(seed))
    (path / "timeline.png").write_bytes(b"\x89PNG a timeline")
    (path / "trace.json").write_text("{}")
    make_run("bp", "bp", 1, 0.95, blocks=2, summary={"samples_per_second": 12345.0})
    held_out = {"experiment": None, "validation_accuracy": 0.625}
    make_run("other", "bp", 1, None, options={"run.experiment": None}, summary=held_out)
    (make_run("stopped") / "summary.json").unlink()
    return folder / "runs"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of runs and of their report."""
    folder = tmp_path_factory.mktemp("page with blanks")
    runs, out = finished_runs(folder), folder / "out"
    main([str(runs), "--out", str(out), "--title", "Of <b>all</b> & sundry"])
    return runs, out


@pytest.fixture(scope="module")
def page(report: tuple[Path, Path]) -> Page:
    return Page((report[1] / "index.html").read_text(encoding="utf-8"))


def test_it_needs_nothing_but_itself(page: Page) -> None:
    assert {tag for tag, _ in page.attributes("src")} == {"img"}
    assert all(url.startswith("data:") for _, url in page.attributes("src"))
    assert [url for tag, url in page.attributes("href") if tag != "a"] == ["data:,"]
    assert not [tag for tag, _ in page.elements if tag in ("iframe", "object", "embed", "base")]
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_links_lead_somewhere(page: Page, report: tuple[Path, Path]) -> None:
    anchors = [name for _, name in page.attributes("id")]
    assert len(anchors) == len(set(anchors))
    for tag, url in page.attributes("href"):
        if tag == "a" and url.startswith("#"):
            assert url[1:] in anchors
        elif tag == "a" and url != "https://ui.perfetto.dev":
            assert (report[1] / unquote(url)).resolve() == (report[0] / "bll-2" / "trace.json").resolve()
    assert page.text.count("trace.json") > 1


def test_every_run_is_in_the_table_with_the_numbers_of_its_summary(page: Page, report: tuple[Path, Path]) -> None:
    (table,) = sources(page.embedded()["run-table"])
    assert sorted(table["run"]) == ["bll-1", "bll-2", "bp", "other"]
    for i, name in enumerate(table["run"]):
        summary = json.loads((report[0] / name / "summary.json").read_text())
        for column, (key, unit) in NUMBERS.items():
            value = table[column][i]
            shown = nan if value == {"type": "number", "value": "nan"} else value
            expected = nan if summary[key] is None else unit * summary[key]
            assert shown == pytest.approx(expected, nan_ok=True), (name, column)
    assert "extra FLOPs [%]" not in table  # which no run has


def test_means_and_deviations_are_those_of_the_report(page: Page, report: tuple[Path, Path]) -> None:
    test = f"{mean([90, 92]):.2f} ± {stdev([90, 92]):.2f}"
    validation = f"{mean([80, 82]):.2f} ± {stdev([80, 82]):.2f}"
    for text in (page.text, (report[1] / "report.md").read_text()):
        assert test in text
        assert validation in text


def curve(page: Page, name: str) -> list[tuple[str, list[float], list[float]]]:
    return [(source["name"][0], source["x"], source["mean"]) for source in sources(page.embedded()[name])]


def test_curves_of_held_out_data(page: Page) -> None:
    ((name, x, y),) = curve(page, "table1-cpu-curves-1")
    assert (name, x) == ("BLL", [0, 9])
    assert y == pytest.approx([mean([61, 62]), mean([70, 71])])
    low, high = curve(page, "table1-cpu-curves-2")
    assert low[0] == "block 1"
    assert low[2] == pytest.approx([50, 59])
    assert high[2] == pytest.approx(y)


def test_curves_of_the_loss(page: Page) -> None:
    low, high = curve(page, "table1-cpu-loss-1")
    assert low[2] == pytest.approx([mean([2, 1]), mean([2 / 10, 2 / 11])])
    assert high[2] == pytest.approx([mean([1, 0.5]), mean([1 / 10, 1 / 11])])


def test_accuracy_of_blocks_from_the_bottom_to_the_top(page: Page) -> None:
    backprop, local = sources(page.embedded()["table1-cpu-block-accuracy-1"])
    assert (backprop["x"], backprop["mean"]) == ([1, 2], [95, 95])
    assert (local["x"], local["mean"]) == ([1, 2], pytest.approx([70, 91]))
    assert backprop["text"] == ["95.00 (1 seed)"] * 2
    assert local["text"] == ["70.00 ± 0.00 (2 seeds)", f"91.00 ± {stdev([90, 92]):.2f} (2 seeds)"]


def test_accuracy_of_exits_against_flops(page: Page) -> None:
    assert curve(page, "table1-cpu-exits-1") == [("BLL", [2, 4], [50, 75])]


def test_where_numbers_come_from(page: Page, report: tuple[Path, Path]) -> None:
    runs, out = report
    for name in ("bll-1", "bll-2", "bp", "other"):
        assert (runs / name).as_posix() in page.text
    assert "10fe1" in page.text
    assert "20fe2" in page.text
    for fact in ("c0ffee", "2.11.0", "a processor, 2 cores", "experiment=table1 scale=cpu"):
        assert fact in page.text
    assert f"python launch/report.py '{runs}' --out '{out}' --title 'Of <b>all</b> & sundry'" in page.text
    assert f"Left out\nUnfinished, without summary.json:\n\n{runs / 'stopped'}" in page.text


def test_timelines_are_in_the_page(page: Page, report: tuple[Path, Path]) -> None:
    images = [b64decode(url.partition(",")[2]) for _, url in page.attributes("src") if url.startswith("data:image/png")]
    assert images == [(report[0] / "bll-2" / "timeline.png").read_bytes()]


def test_texts_of_runs_are_not_taken_for_html(tmp_path: Path, make_run: MakeRun) -> None:
    name = "</script><img src=x onerror=alert(1)>"
    path = make_run("1", options={"model.name": name})
    main([str(path), "--out", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "img" not in {tag for tag, _ in page.elements}
    assert name in page.text
    assert sources(page.embedded()["run-table"])[0]["model"] == [name]


def test_plots_without_data_to_point_at_are_images(tmp_path: Path, make_run: MakeRun) -> None:
    labels = np.arange(12) % 3
    blocks = [np.random.default_rng(0).normal(size=(12, 4)) for _ in range(2)]
    path = make_run("1", blocks=2, activations=blocks, labels=labels)
    main([str(path), "--out", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    images = [b64decode(url.partition(",")[2]) for _, url in page.attributes("src")]
    figures = tmp_path / "out" / "figures"
    assert images == [(figures / f"table1-cpu-{kind}.svg").read_bytes() for kind in ("distances", "tsne")]
