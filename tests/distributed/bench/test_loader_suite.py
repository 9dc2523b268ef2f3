"""Images per second from memory and from files: what the suite reports, on few of them."""

from pathlib import Path

import pytest

from counterflow.bench import loader_suite
from counterflow.bench.cases import CaseFactory
from counterflow.bench.options import BenchContext, BenchOptions


def test_every_way_is_measured_and_reads_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_suite, "_SIZES", [loader_suite._Files(16, 200, "png")])
    options = BenchOptions(suite="loader", repeats=2)
    result = loader_suite.measure_loader(BenchContext(options, CaseFactory(tmp_path), tmp_path, lambda text: None))
    assert [case.name for case in result.cases] == [
        "png 16x16, in memory", "png 16x16, workers=1", "png 16x16, workers=2",
    ]  # fmt: skip
    assert len(list(tmp_path.rglob("*.png"))) == 210
    for case in result.cases:
        assert case.samples_per_second is not None
        assert case.repeats == 2
        assert case.extra["seconds_before_the_first_batch"] > 0
    assert result.cases[0].ratio_to_baseline == 1
