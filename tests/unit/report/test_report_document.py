"""The complete report, by its command line."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from counterflow.report.cli import main
from tests.helpers.finished_runs import run_maker

MakeRun = Callable[..., Path]


def finished_runs(folder: Path) -> Path:
    make_run = run_maker(folder)
    for seed, accuracy in ((1, 0.9), (2, 0.92)):
        for blocks in (2, 4):
            make_run(f"bll-{blocks}-{seed}", "bll", seed, accuracy, blocks=blocks)
        make_run(f"bp-{seed}", "bp", seed, 0.95, blocks=1, summary={"git_commit": "f00d-dirty"})
    (make_run("stopped") / "summary.json").unlink()
    return folder / "runs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return finished_runs(tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of runs and of their report, which several tests look at, and must not change."""
    folder = tmp_path_factory.mktemp("report")
    runs, out = finished_runs(folder), folder / "out"
    main([str(runs), "--out", str(out)])
    return runs, out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_report(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(runs), "--out", str(out), "--title", "What came out"]) == 0
    assert capsys.readouterr().out.split() == [str(out / "report.md"), str(out / "index.html")]
    text = (out / "report.md").read_text()
    assert text.startswith("# What came out\n")
    assert "## table1, scale cpu" in text
    assert "91.00 ± 1.41" in text
    assert f"python launch/report.py {runs} --out {out} --title 'What came out'" in text
    assert "Of 6 finished runs" in text
    assert contents(out).keys() == {
        "report.md",
        "index.html",
        "figures/table1-cpu-blocks.png",
        "figures/table1-cpu-blocks.svg",
    }
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (out / link).is_file()


def test_where_numbers_come_from(report: tuple[Path, Path]) -> None:
    runs, out = report
    text = (out / "report.md").read_text()
    for fact in (
        "preset: experiment=table1 scale=cpu",
        "commit: c0ffee, f00d-dirty",
        "torch: 2.11.0",
        "torchvision: 0.26.0",
        "python: 3.11.9",
        "hardware: a processor, 2 cores",
        "device: cpu",
        "seeds: 1, 2",
    ):
        assert text.count(f"- {fact}\n") == 2, "once for the table, once for its figure"
    for run in ("bll-2-1", "bll-4-2", "bp-1"):
        assert f"| `{(runs / run).as_posix()}` | {run[-1]} | `" in text


def test_what_is_left_out_is_named(tmp_path: Path, runs: Path, make_run: MakeRun) -> None:
    again = make_run("zzz", "bp", 1, 0.5, blocks=1)
    main([str(runs), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    left_out = text.partition("## Left out")[2]
    assert f"- `{(runs / 'stopped').as_posix()}`" in left_out
    assert f"- `{again.as_posix()}`" in left_out
    assert "50.00" not in text
    assert text.count("stopped") == 1


def test_runs_of_different_versions_are_said(tmp_path: Path, make_run: MakeRun) -> None:
    old = make_run("1", "bp", summary={"torchvision_version": None})
    new = make_run("2", "bll", summary={"torch_version": "2.15.0", "git_commit": "f00d", "hardware": "another"})
    main([str(old), str(new), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    table_end = max(i for i, line in enumerate(lines) if line.startswith("| BLL"))
    assert lines[table_end + 2] == (
        "These runs were made under different versions: "
        "torch 2.11.0, 2.15.0; commit c0ffee, f00d; hardware a processor, 2 cores, another."
    )
    main([str(new), "--out", str(tmp_path / "out")])
    assert "different versions" not in (tmp_path / "out" / "report.md").read_text()


def test_a_second_look_at_test_data_is_said(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run("1", rows=[{"event": "test", "n": 9, "seconds": 0.1, "accuracy": [0.5]}])
    main([str(path), "--out", str(tmp_path / "out")])
    assert f"- `{path.as_posix()}`: 2 times" in (tmp_path / "out" / "report.md").read_text()


def test_sources_of_published_numbers_are_printed(tmp_path: Path, make_run: MakeRun) -> None:
    path = make_run("1", options={"model.name": "resnet50", "data.name": "cifar10"})
    main([str(path), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "published for the full-size network [%]" in text
    assert "Published numbers: Kappel et al., arXiv 2305.14974" in text


def test_equal_runs_give_equal_bytes(report: tuple[Path, Path]) -> None:
    runs, out = report
    first = contents(out)
    main([str(runs), "--out", str(out)])
    assert contents(out) == first


def test_plots_of_an_earlier_report_go_away_and_other_files_stay(tmp_path: Path, report: tuple[Path, Path]) -> None:
    runs, earlier = report
    out = tmp_path / "out"
    shutil.copytree(earlier, out)
    (out / "log.md").write_text("mine")
    (out / "figures" / "sketch.png").write_bytes(b"mine")
    main([str(runs / "bp-1"), "--out", str(out)])
    assert contents(out).keys() == {"report.md", "index.html", "log.md", "figures/sketch.png"}


def test_errors_are_one_line(tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, stopped = make_run("damaged"), make_run("other/stopped")
    (damaged / "summary.json").write_text("{")
    (stopped / "summary.json").unlink()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "nowhere: is no directory"),
        ([str(damaged)], "damaged/summary.json: line 1: is no JSON"),
        ([str(stopped)], "other/stopped: no run has finished"),
        ([str(make_run("fine")), "--out", str(tmp_path / "file" / "out")], "file"),
    ):
        out = ["--out", str(tmp_path / "out")] if "--out" not in arguments else []
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *out])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_bokeh_the_page_alone_is_missing(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("bokeh.") or name == "counterflow.report.page"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)  # as if it were not installed
    out = tmp_path / "out"
    assert main([str(runs), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out / "report.md")]
    assert printed.err == "note: index.html is not written: it needs bokeh (pip install 'counterflow[report]')\n"
    assert contents(out).keys() == {"report.md", "figures/table1-cpu-blocks.png", "figures/table1-cpu-blocks.svg"}


@pytest.mark.parametrize("arguments", [[], ["--scale=full", "runs"]])
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
