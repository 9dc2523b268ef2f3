"""Suite ``transport``: the cost of a message over a channel and over bare gloo, and the engine's overhead per batch.

The engine's part is EMULATED: its blocks sleep, or take no time at all, so that the engine alone takes time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from counterflow.bench.case import BenchmarkCase, RankMeasurement, sleep_without_engine
from counterflow.bench.charts import chart, colour, log_ticks
from counterflow.bench.options import BenchContext
from counterflow.bench.p2p import CHANNEL, DEPTH, GLOO, WAYS, MessageSeries, WayTimes, compare_ways
from counterflow.bench.results import CaseResult, Goal, SuiteResult
from counterflow.bench.sleeping import Sleep
from counterflow.bench.workers import WorkerSettings, run_workers

_KB, _MB = 1 << 10, 1 << 20
_GOAL_OVER_GLOO = 0.90
_STAGE = 0.010
"""Seconds."""
_BATCH, _WIDTH = 32, 32
_FEW, _MANY = 50, 250
"""Batches of blocks that sleep. CPU time per batch is the difference of these runs, without start and end."""
_RANKS = 3
"""The rank in the middle has neighbours on both sides, as most ranks have."""
_SETTINGS = WorkerSettings(timeout=120, pinned=True)

_Times = tuple[float, float]
"""Wall-clock and CPU seconds per batch."""


def measure_transport(context: BenchContext) -> SuiteResult:
    """Bytes/s and latency of messages over both ways, and the engine's overhead for a stage of 10 ms."""
    rounds = context.options.rounds
    sizes = [_KB, 64 * _KB, _MB, 16 * _MB] if context.options.quick else [_KB << 2 * i for i in range(9)]
    flows = [flow_series(nbytes) for nbytes in sizes]
    context.log(f"{len(flows)} sizes of messages, over channels and over bare gloo")
    # Three measurements in a round: they are short, and differ by a third on a shared machine.
    echo, turns = MessageSeries(_KB, count=500, warmup=50), 3 * rounds
    flow_times, echo_times = run_workers(
        WorkerSettings(60.0 * turns, pinned=True), 2, compare_ways, flows, echo, turns
    )[0]
    results = [result for flow in flows for result in flow_results(flow, flow_times[flow.nbytes])]
    slowest = min(result.ratio_to_baseline or 0.0 for result in results[:: len(WAYS)] if result.extra["bytes"] >= _MB)
    goals = [Goal("bytes/s over raw gloo, least of all sizes from 1 MB on", _GOAL_OVER_GLOO, slowest)]
    results += echo_results(echo, echo_times)

    context.cases.write_images(2 * _BATCH, pixels=4, channels=1)
    limits, engine, baseline = zip(*(_measure_engine(context) for _ in range(rounds)), strict=True)
    added = [(wall - wall_0, cpu - cpu_0) for (wall, cpu), (wall_0, cpu_0) in zip(engine, baseline, strict=True)]
    results += [
        CaseResult(name="engine, no work", ranks=2, repeats=rounds, extra={"wall_us": 1e6 * median(limits)}),
        _engine_result("engine, 10 ms asleep", engine),
        _engine_result("no engine, 10 ms asleep", baseline),
        _engine_result("added by the engine", added),
    ]
    for clock, seconds in zip(("by the clock", "of a processor's time"), zip(*added, strict=True), strict=True):
        text = f"added by the engine to a stage of 10 ms, share of it, {clock}"
        goals.append(Goal(text, 0.03, median(seconds) / _STAGE, at_most=True))
    return SuiteResult(
        "transport",
        settings={
            "rows of the engine": "EMULATED: blocks that sleep, or do not even that",
            "receives posted ahead": DEPTH,
            "cores": "one for each of two ranks, and for all of its threads",
            "rounds": rounds,
        },
        cases=results,
        goals=goals,
    )


def flow_series(nbytes: int) -> MessageSeries:
    """As many messages of ``nbytes`` as one measurement sends: a gigabyte, in 12 to 1000 messages."""
    count = max(12, min(1000, 1024 * _MB // nbytes))
    return MessageSeries(nbytes, count, max(4, count // 10))


def flow_results(series: MessageSeries, times: WayTimes) -> Iterator[CaseResult]:
    """Results of a flow, one per way; the ratio is that of bytes/s to bare gloo, within a round."""
    for way in WAYS:
        seconds = [time.seconds for time in times[way]]
        ratios = [gloo.seconds / own.seconds for own, gloo in zip(times[way], times[GLOO], strict=True)]
        yield CaseResult(
            name=f"{way}, {_size(series.nbytes)}",
            ranks=2,
            baseline=f"{GLOO}, {_size(series.nbytes)}",
            ratio_to_baseline=median(ratios),
            ratio_lowest=min(ratios),
            ratio_highest=max(ratios),
            repeats=len(seconds),
            extra={
                "way": way,
                "bytes": series.nbytes,
                "messages_per_second": 1 / median(seconds),
                "mb_per_second": series.nbytes / median(seconds) / 1e6,
                "mb_per_second_lowest": series.nbytes / max(seconds) / 1e6,
                "mb_per_second_highest": series.nbytes / min(seconds) / 1e6,
                "cpu_us": 1e6 * median(time.cpu for time in times[way]),
            },
        )


def echo_results(series: MessageSeries, times: WayTimes) -> Iterator[CaseResult]:
    """Results of an echo, one per way: latency and CPU time of a message, and a channel's difference to bare gloo."""
    pairs = list(zip(times[CHANNEL], times[GLOO], strict=True))
    beyond = {
        "cpu_us_beyond_raw": 1e6 * median(own.cpu - gloo.cpu for own, gloo in pairs),
        "latency_us_beyond_raw": 1e6 * median(own.seconds - gloo.seconds for own, gloo in pairs),
    }
    for way in WAYS:
        yield CaseResult(
            name=f"{way}, {_size(series.nbytes)}, there and back",
            ranks=2,
            repeats=len(pairs),
            extra={
                "way": way,
                "cpu_us": 1e6 * median(time.cpu for time in times[way]),
                "latency_us": 1e6 * median(time.seconds for time in times[way]),
                **(beyond if way == CHANNEL else dict.fromkeys(beyond)),
            },
        )


def _engine_result(name: str, times: Sequence[_Times]) -> CaseResult:
    wall, cpu = (median(seconds) for seconds in zip(*times, strict=True))
    return CaseResult(
        name=name,
        ranks=_RANKS,
        batch=_BATCH,
        repeats=len(times),
        extra={"wall_us": 1e6 * wall, "cpu_us": 1e6 * cpu, "share_of_10_ms": wall / _STAGE},
    )


def _measure_engine(context: BenchContext) -> tuple[float, _Times, _Times]:
    """Times of one round: wall-clock seconds per batch of blocks that take no time; then, of blocks that sleep, the
    times with the engine, and those without. CPU time is that of the rank in the middle."""
    context.log("the engine on blocks that sleep")

    def case(seconds: float, ranks: int, batches: int) -> BenchmarkCase:
        return context.cases.sleeping("free", Sleep(seconds / 3, 2 * seconds / 3, 0.0, _BATCH, _WIDTH), ranks, batches)

    def run(case: BenchmarkCase) -> Sequence[RankMeasurement]:
        return run_workers(_SETTINGS, case.ranks, case.task, case)

    limit = _slowest(run(case(0.0, ranks=2, batches=2000)))
    long = case(_STAGE, _RANKS, _MANY)
    few, many = run(case(_STAGE, _RANKS, _FEW)), run(long)
    alone = run_workers(_SETTINGS, _RANKS, sleep_without_engine, long)
    engine = _slowest(many), (many[1].cpu_seconds - few[1].cpu_seconds) / (_MANY - _FEW)
    return limit, engine, (max(wall for wall, _ in alone), alone[1][1])


def _slowest(ranks: Sequence[RankMeasurement]) -> float:
    """Seconds per batch of the slowest rank."""
    return max(rank.seconds / rank.batches for rank in ranks)


def _size(nbytes: int) -> str:
    return f"{nbytes // _MB} MB" if nbytes >= _MB else f"{nbytes // _KB} KB"


def draw_transport(suite: Mapping[str, Any], folder: Path) -> None:
    """Charts of bytes/s over sizes, and of the ratio of both ways."""
    rows = {way: [row for row in suite["rows"] if row.get("bytes") and row["way"] == way] for way in WAYS}
    with chart(folder / "transport.png", 1, 2, 3.8) as (figure, (speed, ratio)):
        for axes, way, column, low, high in (
            *((speed, way, "mb_per_second", "mb_per_second_lowest", "mb_per_second_highest") for way in WAYS),
            (ratio, CHANNEL, "ratio_to_baseline", "ratio_lowest", "ratio_highest"),
        ):
            ink = colour("BLL" if way == CHANNEL else way)
            sizes, middle, lowest, highest = ([row[key] for row in rows[way]] for key in ("bytes", column, low, high))
            axes.plot(sizes, middle, color=ink, marker="o", label=way)
            axes.fill_between(sizes, lowest, highest, color=ink, alpha=0.2, linewidth=0)
            log_ticks(axes, {nbytes: _size(nbytes) for nbytes in sizes})
            axes.tick_params("x", rotation=45)
        speed.set(yscale="log", ylabel="MB/s")
        speed.legend()
        ratio.axhline(_GOAL_OVER_GLOO, color="black", linewidth=1, linestyle="--")
        ratio.set(ylim=(0, None), ylabel="bytes/s, channel over raw gloo")
        figure.suptitle("Messages between two processes; bands from lowest to highest")
