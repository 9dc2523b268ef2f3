"""Suite ``wan`` on a small scale, and the lag that it plans."""

from pathlib import Path

import pytest

from counterflow.bench import wan_suite
from counterflow.bench.cases import CaseFactory
from counterflow.bench.netem import LinkSpeed, unavailable_reason
from counterflow.bench.options import BenchContext, BenchOptions, TaskOptions
from counterflow.bench.wan_suite import draw_wan, measure_wan, planned_lag


def test_the_lag_covers_the_latency() -> None:
    gigabit = 125e6
    assert planned_lag(0.1, 1e5, LinkSpeed(gigabit, 0.0)) == 2
    lags = [planned_lag(0.1, 1e5, LinkSpeed(gigabit / 10, latency)) for latency in (0.05, 0.15, 0.3)]
    assert lags == sorted(lags)
    assert 2 <= lags[0] < lags[-1] <= 16


@pytest.mark.skipif(unavailable_reason() is not None, reason="no network namespaces")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = [
        method
        for method in wan_suite._METHODS["cifar10"]
        if method.name in ("BLL, fp32", "BLL, int8", "1F1B m=4, fp32", "1F1B m=4, int8", "DDP", "whole replicas")
    ]
    monkeypatch.setitem(wan_suite._METHODS, "cifar10", tuple(kept))
    monkeypatch.setitem(wan_suite._OPTIONS, "cifar10", ("experiment=cifar10_tuning", "scale=smoke"))
    for name, value in {"_FEWEST": 3, "_MOST": 6, "_SECONDS": 1.0, "_TEN_MINUTES": 2.0}.items():
        monkeypatch.setattr(wan_suite, name, value)
    options = BenchOptions(suite="wan", quick=True, task=TaskOptions(root=str(tmp_path)))
    suite = measure_wan(BenchContext(options, CaseFactory(tmp_path), tmp_path, lambda text: None))
    rows = {case.name: case.extra for case in suite.cases}
    assert len(rows) == 2 * len(kept)
    sent = {name: row["sent_megabytes_of_a_batch"] for name, row in rows.items()}
    assert sent["BLL, int8 | loopback"] < 0.4 * sent["BLL, fp32 | loopback"]
    assert all(value > 0 for value in sent.values())
    middle = [row for row in rows.values() if row["link"] != "loopback"]
    assert all(row["milliseconds_of_a_batch"] > 25 for row in middle if row["kind"] in ("pipeline", "ddp"))
    assert sum(row["figure_after_ten_minutes"] is not None for row in rows.values()) == 4
    assert len(suite.goals) == 4
    draw_wan(suite.to_json(), tmp_path)
    assert (tmp_path / "wan-cifar10.png").stat().st_size > 1000
