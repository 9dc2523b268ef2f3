"""Messages over both ways between real processes, and the rows that are made of their times."""

from pathlib import Path

import pytest

from counterflow.bench.brief import Brief
from counterflow.bench.carriage import CHANNEL, RAW, WAYS, Line, Load, Timed, compare
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import asleep, noise
from counterflow.bench.idle import idle
from counterflow.bench.options import BenchOptions
from counterflow.bench.sleeping import Sleep
from counterflow.bench.suites import transport
from counterflow.transport import Communicator
from tests.helpers.processes import CONF

SMALL, LARGE = Load(1024, 40, 4), Load(8 << 20, 8, 4)
SETTING = Setting(timeout=60)


def test_every_way_is_measured_in_every_round() -> None:
    first, second = run(SETTING, 2, compare, [SMALL, LARGE], SMALL, 3)
    assert first == second
    assert first.flows.keys() == {1024, 8 << 20}
    timed = [times for ways in (first.echoes, *first.flows.values()) for times in ways.values()]
    assert [len(times) for times in timed] == [3] * 6
    assert all(one.seconds > 0 and one.cpu > 0 for times in timed for one in times)
    for way in WAYS:
        small, large = (min(one.seconds for one in first.flows[load.nbytes][way]) for load in (SMALL, LARGE))
        assert large > 3e-4  # no machine moves more than 27 GB/s through a socket
        assert small < large


def one_after_the_other(comm: Communicator) -> list[Timed]:
    """Channels are opened anew each time, over groups that stay."""
    line = Line(comm)
    return [measure(way, SMALL) for way in WAYS for measure in (line.flow, line.echo) for _ in range(3)]


def test_measurements_follow_each_other() -> None:
    found, other = run(SETTING, 2, one_after_the_other)
    assert found == other
    assert len(found) == 12


def test_a_block_without_an_engine(tmp_path: Path) -> None:
    sleep = Sleep(forward=0.002, backward=0.003, update=0.0, batch=4, width=4)
    noise(tmp_path, 8, 4, 1)
    for wall, cpu in run(SETTING, 2, idle, asleep(CONF, tmp_path, "free", sleep, 2, 20)):
        assert 0.005 <= wall < 0.1
        assert 0 < cpu < wall


def test_loads_are_long_enough_and_not_too_long() -> None:
    loads = [transport._load(1024 << 2 * i) for i in range(9)]
    assert loads[0].count == 1000
    assert loads[-1] == Load(64 << 20, 16, 4)
    assert all(load.nbytes * load.count <= 1 << 30 for load in loads)


def times(*seconds: float) -> list[Timed]:
    return [Timed(one, cpu=2 * one) for one in seconds]


def test_ratios_are_those_within_a_round() -> None:
    load = Load(1_000_000 // 64 * 64, 12, 4)
    own, raw = transport._flow(load, {CHANNEL: times(1e-3, 4e-3, 3e-3), RAW: times(2e-3, 2e-3, 3e-3)})
    assert (own.ratio_to_baseline, own.ratio_lowest, own.ratio_highest) == (1.0, 0.5, 2.0)
    assert own.baseline == raw.name
    assert (own.repeats, raw.ratio_to_baseline) == (3, 1.0)
    assert own.more["messages_per_second"] == pytest.approx(1 / 3e-3)
    assert own.more["mb_per_second_highest"] == pytest.approx(load.nbytes / 1e3)
    assert own.more["cpu_us"] == pytest.approx(6000)


def test_what_is_beyond_raw_is_told_of_channels_alone() -> None:
    own, raw = transport._echo(SMALL, {CHANNEL: times(3e-4, 2e-4), RAW: times(1e-4, 1e-4)})
    assert own.more["latency_us_beyond_raw"] == pytest.approx(150)
    assert own.more["cpu_us_beyond_raw"] == pytest.approx(300)
    assert raw.more["latency_us_beyond_raw"] is None


@pytest.mark.slow
def test_the_whole_suite(tmp_path: Path) -> None:
    options = BenchOptions(suite="transport", repeats=1, quick=True)
    result = transport.measure(Brief(options, CONF, tmp_path, tmp_path, lambda text: None))
    assert len(result.rows) == 2 * 4 + 2 + 4
    bandwidth, wall, processors = result.goals
    assert 0.1 < bandwidth.reached < 10
    assert wall.at_most
    assert 0 < processors.reached < 1
    transport.draw(result.note(), tmp_path)
    assert (tmp_path / "transport.png").stat().st_size > 10_000
