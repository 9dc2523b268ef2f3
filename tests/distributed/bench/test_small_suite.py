"""A small suite on real processes: its table, files and chart."""

import json
from pathlib import Path

import pytest

from counterflow.bench.cli import run_suites
from counterflow.bench.options import BenchOptions, StageOptions
from counterflow.bench.results import CaseResult, SuiteResult


@pytest.mark.timeout(180)
def test_a_small_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = StageOptions(forward_ms=4, backward_ms=8, update_ms=1)
    options = BenchOptions(
        suite="emulated", ranks=2, microbatches=4, repeats=1, quick=True, stage=stage, out=str(tmp_path)
    )
    earlier = SuiteResult("other", {}, [CaseResult(name="row", ranks=1)], []).to_json()
    earlier |= dict.fromkeys(("command", "hardware", "torch_version", "git_commit"), "x") | {"seconds": 1.0}
    (tmp_path / "bench.json").write_text(json.dumps([earlier]))
    run_suites(options)
    other, suite = json.loads((tmp_path / "bench.json").read_text())
    assert other == earlier
    assert suite["settings"]["emulated"]
    assert suite["git_commit"] is None or len(suite["git_commit"]) >= 40
    rows = {row["name"]: row for row in suite["rows"]}
    assert list(rows) == ["BLL", "GPipe m=4", "1F1B m=4"]
    for row in rows.values():
        assert 0 < row["share_of_ideal"] <= 1.01
        assert row["samples_per_second"] > 0
        assert row["peak_rss_bytes"] > 1e7
        assert 0 <= row["wait_fraction"] < 1
        assert row["predicted_samples_per_second"] > 0
    # two stages, four micro-batches: a fifth of a pipeline's time is bubble, and the update on top
    assert rows["BLL"]["samples_per_second"] > rows["1F1B m=4"]["samples_per_second"]
    assert (tmp_path / "emulated.png").stat().st_size > 1000
    for text in (capsys.readouterr().out, (tmp_path / "bench.md").read_text()):
        assert "EMULATED" in text
        assert "1F1B m=4" in text
    assert "## other" in (tmp_path / "bench.md").read_text()
