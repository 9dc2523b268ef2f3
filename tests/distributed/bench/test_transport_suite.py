"""Messages over both ways between real processes, and the results of the suite ``transport``."""

from pathlib import Path

import pytest

from counterflow.bench.case import sleep_without_engine
from counterflow.bench.cases import CaseFactory
from counterflow.bench.options import BenchContext, BenchOptions
from counterflow.bench.p2p import CHANNEL, GLOO, WAYS, MessageSeries, MessageTime, P2PBenchmark, compare_ways
from counterflow.bench.sleeping import Sleep
from counterflow.bench.transport_suite import (
    draw_transport,
    echo_results,
    flow_results,
    flow_series,
    measure_transport,
)
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.transport import Communicator

SMALL, LARGE = MessageSeries(1024, 40, 4), MessageSeries(8 << 20, 8, 4)
SETTINGS = WorkerSettings(timeout=60)


def test_every_way_is_measured_in_every_round() -> None:
    first, second = run_workers(SETTINGS, 2, compare_ways, [SMALL, LARGE], SMALL, 3)
    assert first == second
    flows, echoes = first
    assert flows.keys() == {1024, 8 << 20}
    timed = [times for ways in (echoes, *flows.values()) for times in ways.values()]
    assert [len(times) for times in timed] == [3] * 6
    assert all(one.seconds > 0 and one.cpu > 0 for times in timed for one in times)
    for way in WAYS:
        small, large = (min(one.seconds for one in flows[series.nbytes][way]) for series in (SMALL, LARGE))
        assert large > 3e-4  # no machine moves more than 27 GB/s through a socket
        assert small < large


def measure_repeatedly(comm: Communicator) -> list[MessageTime]:
    """Each measurement opens new channels over the same groups."""
    benchmark = P2PBenchmark(comm)
    return [benchmark.measure(way, SMALL, echo) for way in WAYS for echo in (False, True) for _ in range(3)]


def test_measurements_follow_each_other() -> None:
    first, second = run_workers(SETTINGS, 2, measure_repeatedly)
    assert first == second
    assert len(first) == 12


def test_a_block_without_an_engine(tmp_path: Path) -> None:
    sleep = Sleep(forward=0.002, backward=0.003, update=0.0, batch=4, width=4)
    cases = CaseFactory(tmp_path)
    cases.write_images(16, 4, 1)
    for wall, cpu in run_workers(SETTINGS, 2, sleep_without_engine, cases.sleeping("free", sleep, 2, 20)):
        assert 0.005 <= wall < 0.1
        assert 0 < cpu < wall


def test_series_are_long_enough_and_not_too_long() -> None:
    flows = [flow_series(1024 << 2 * i) for i in range(9)]
    assert flows[0].count == 1000
    assert flows[-1] == MessageSeries(64 << 20, 16, 4)
    assert all(flow.nbytes * flow.count <= 1 << 30 for flow in flows)


def times(*seconds: float) -> list[MessageTime]:
    return [MessageTime(one, cpu=2 * one) for one in seconds]


def test_ratios_are_those_within_a_round() -> None:
    series = MessageSeries(1_000_000 // 64 * 64, 12, 4)
    own, raw = flow_results(series, {CHANNEL: times(1e-3, 4e-3, 3e-3), GLOO: times(2e-3, 2e-3, 3e-3)})
    assert (own.ratio_to_baseline, own.ratio_lowest, own.ratio_highest) == (1.0, 0.5, 2.0)
    assert own.baseline == raw.name
    assert (own.repeats, raw.ratio_to_baseline) == (3, 1.0)
    assert own.extra["messages_per_second"] == pytest.approx(1 / 3e-3)
    assert own.extra["mb_per_second_highest"] == pytest.approx(series.nbytes / 1e3)
    assert own.extra["cpu_us"] == pytest.approx(6000)


def test_only_channels_have_a_difference_to_gloo() -> None:
    own, raw = echo_results(SMALL, {CHANNEL: times(3e-4, 2e-4), GLOO: times(1e-4, 1e-4)})
    assert own.extra["latency_us_beyond_raw"] == pytest.approx(150)
    assert own.extra["cpu_us_beyond_raw"] == pytest.approx(300)
    assert raw.extra["latency_us_beyond_raw"] is None


@pytest.mark.slow
def test_the_whole_suite(tmp_path: Path) -> None:
    options = BenchOptions(suite="transport", repeats=1, quick=True)
    result = measure_transport(BenchContext(options, CaseFactory(tmp_path), tmp_path, lambda text: None))
    assert len(result.cases) == 2 * 4 + 2 + 4
    bandwidth, wall, processors = result.goals
    assert 0.1 < bandwidth.reached < 10
    assert wall.at_most
    assert 0 < processors.reached < 1
    draw_transport(result.to_json(), tmp_path)
    assert (tmp_path / "transport.png").stat().st_size > 10_000
