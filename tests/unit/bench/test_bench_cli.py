"""Options, goals and errors of the benchmark command line."""

import logging
from pathlib import Path
from typing import Any

import pytest

from counterflow.bench.cli import SUITES, main, run_suites
from counterflow.bench.options import SUITE_NAMES, BenchOptions, LinkOptions, StageOptions
from counterflow.bench.results import CaseResult, Goal, SuiteResult, format_value, goal_lines


def test_every_suite_is_there() -> None:
    assert set(SUITES) == set(SUITE_NAMES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"suite": "fast"}, "suite=fast: allowed are all, cpu2, emulated"),
        ({"suite": ["cpu2", 3]}, "suite=3: allowed"),
        ({"ranks": 0}, "ranks=0: allowed are whole numbers of 1 to 256"),
        ({"ranks": []}, "ranks="),
        ({"microbatches": [4, "x"]}, "microbatches="),
        ({"repeats": 0}, "repeats=0: must be at least 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("[", "\\[")):
        BenchOptions(**options)


def test_wrong_times_and_links() -> None:
    with pytest.raises(ValueError, match=r"stage.forward_ms=-1"):
        StageOptions(forward_ms=-1)
    with pytest.raises(ValueError, match=r"stage.forward_ms=0"):
        StageOptions(forward_ms=0, backward_ms=0)
    for bandwidth in (0, -1, float("nan"), 1001):
        with pytest.raises(ValueError, match=rf"^link.bandwidth_gbps={bandwidth}: must be greater than 0 and at most"):
            LinkOptions(bandwidth_gbps=bandwidth)
    for latency in (-1, float("nan"), 10001):
        with pytest.raises(ValueError, match=rf"^link.latency_ms={latency}: must be at least 0 and at most 10000"):
            LinkOptions(latency_ms=latency)


def test_options_override_the_defaults_of_a_suite() -> None:
    assert BenchOptions().numbers("ranks", [2, 4]) == [2, 4]
    assert BenchOptions(ranks=3).numbers("ranks", [2, 4]) == [3]
    assert BenchOptions(ranks=[3, 5]).numbers("ranks", [2, 4]) == [3, 5]
    assert StageOptions(backward_ms=7).seconds(1, 2, 3) == pytest.approx((0.001, 0.007, 0.003))


def test_goals_say_whether_they_were_reached() -> None:
    result = SuiteResult("x", {}, [], [Goal("high", 1.2, 1.3), Goal("low", 0.1, 0.2, at_most=True)])
    high, low = goal_lines(result.to_json())
    assert high.endswith("1.3, wanted >= 1.2: reached")
    assert low.endswith("0.2, wanted <= 0.1: NOT reached")


def test_metrics_of_a_suite_stand_beside_the_others() -> None:
    suite = SuiteResult("x", {"a": 1}, [CaseResult(name="r", ranks=2).with_extra(depth=3.0)], []).to_json()
    assert suite["rows"][0]["depth"] == 3.0
    assert suite["rows"][0]["name"] == "r"
    assert "extra" not in suite["rows"][0]


def test_format_value() -> None:
    assert [
        format_value("share_of_ideal", 0.95),
        format_value("x", 12345.6),
        format_value("x", 1.2345),
        format_value("x", None),
    ] == [
        "95.0 %",
        "12,346",
        "1.23",
        "",
    ]


def test_a_foreign_bench_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("no json")
    with pytest.raises(ValueError, match=r"holds a bench.json that is none"):
        run_suites(BenchOptions(out=str(tmp_path)))


def test_a_wrong_option_prints_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench.py", "suite=fast"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("error: suite=fast: allowed are all, cpu2")
    assert not logging.getLogger("counterflow.metrics.tensorboard").disabled, "hydra silences the library's warnings"
