"""Suite ``replicas`` on a small scale."""

from pathlib import Path

import pytest

from counterflow.bench import replica_suite
from counterflow.bench.cases import CaseFactory
from counterflow.bench.netem import unavailable_reason
from counterflow.bench.options import BenchContext, BenchOptions, StageOptions


@pytest.mark.skipif(unavailable_reason() is not None, reason="no network namespaces")
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"_BLOCKS": 2, "_REPLICAS": 2, "_PARAMETERS": 64, "_PERIOD": 2, "_DELAY": 1}.items():
        monkeypatch.setattr(replica_suite, name, value)
    stage = StageOptions(forward_ms=20.0, backward_ms=20.0)
    options = BenchOptions(suite="replicas", repeats=1, quick=True, stage=stage)
    suite = replica_suite.measure_replicas(BenchContext(options, CaseFactory(tmp_path), tmp_path, lambda text: None))
    assert [case.ranks for case in suite.cases] == [2, 4, 4, 4]
    assert all(0 < case.extra["share_of_ideal"] <= 1 for case in suite.cases)
    assert "emulated" in suite.settings
    assert len(suite.goals) == 2
