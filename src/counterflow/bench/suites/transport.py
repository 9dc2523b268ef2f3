"""What a message costs over a channel, beside bare gloo between the same two processes; and what the engine adds to a
batch.

The engine's part is EMULATED: its blocks sleep, or do not even sleep, so that nothing but the engine takes time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.carriage import CHANNEL, DEPTH, RAW, WAYS, Load, Timed, compare
from counterflow.bench.contender import Contender, Reading
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import asleep, noise
from counterflow.bench.idle import idle
from counterflow.bench.row import Goal, Result, StepMetrics
from counterflow.bench.sleeping import Sleep

_KILO, _MEGA = 1 << 10, 1 << 20
_SIZES = [_KILO << 2 * i for i in range(9)]
_SOME_SIZES = [_KILO, 64 * _KILO, _MEGA, 16 * _MEGA]
_ABOUT, _MOST, _FEWEST = 1024 * _MEGA, 1000, 12
"""Bytes of a measurement, and the number of its messages."""
_TURNS = 3
"""Measurements of each size in a round: they are short, and differ by a third on a shared machine."""
_ECHOES = 500
_LARGE = _MEGA
_OF_RAW, _OF_STAGE = 0.90, 0.03
_STAGE = 0.010
"""Seconds."""
_BATCH, _WIDTH = 32, 32
_IDLE = 2000
"""Batches of stages that take no time."""
_FEW, _MORE = 50, 250
"""Batches of stages that sleep: processors' time for a batch is that of these runs' difference."""
_RANKS = 3
_SETTING = Setting(timeout=120, pinned=True)


def measure(brief: Brief) -> Result:
    rows, goals = [], []
    for found, reached in (_messages(brief), _engine(brief)):
        rows += found
        goals += reached
    settings = {
        "rows of the engine": "EMULATED: blocks that sleep, or do not even that",
        "receives posted ahead": DEPTH,
        "cores": "one for each of two ranks, and for all of its threads",
        "rounds": brief.options.rounds,
    }
    return Result("transport", settings, rows, goals)


def _messages(brief: Brief) -> tuple[list[StepMetrics], list[Goal]]:
    loads = [_load(nbytes) for nbytes in (_SOME_SIZES if brief.options.quick else _SIZES)]
    brief.log(f"{len(loads)} sizes of messages, over channels and over bare gloo")
    echo = Load(_KILO, _ECHOES, _ECHOES // 10)
    turns = _TURNS * brief.options.rounds
    found, _ = run(Setting(timeout=60.0 * turns, pinned=True), 2, compare, loads, echo, turns)
    rows = [row for load in loads for row in _flow(load, found.flows[load.nbytes])]
    least = min(_ratio(row) for row in rows if row.more["way"] == CHANNEL and _bytes(row) >= _LARGE)
    goal = Goal("bytes/s over raw gloo, least of all sizes from 1 MB on", _OF_RAW, least)
    return [*rows, *_echo(echo, found.echoes)], [goal]


def _load(nbytes: int) -> Load:
    count = max(_FEWEST, min(_MOST, _ABOUT // nbytes))
    return Load(nbytes, count, max(4, count // 10))


def _flow(load: Load, found: Mapping[str, Sequence[Timed]]) -> Iterator[StepMetrics]:
    ratios = [raw.seconds / own.seconds for own, raw in zip(found[CHANNEL], found[RAW], strict=True)]
    for way in WAYS:
        own = way == CHANNEL
        seconds = [timed.seconds for timed in found[way]]
        yield StepMetrics(
            name=f"{way}, {_size(load.nbytes)}",
            ranks=2,
            baseline=f"{RAW}, {_size(load.nbytes)}",
            ratio_to_baseline=median(ratios) if own else 1.0,
            ratio_lowest=min(ratios) if own else 1.0,
            ratio_highest=max(ratios) if own else 1.0,
            repeats=len(seconds),
            more={
                "way": way,
                "bytes": load.nbytes,
                "messages_per_second": 1 / median(seconds),
                "mb_per_second": load.nbytes / median(seconds) / 1e6,
                "mb_per_second_lowest": load.nbytes / max(seconds) / 1e6,
                "mb_per_second_highest": load.nbytes / min(seconds) / 1e6,
                "cpu_us": 1e6 * median(timed.cpu for timed in found[way]),
            },
        )


def _echo(load: Load, found: Mapping[str, Sequence[Timed]]) -> Iterator[StepMetrics]:
    """There and back, one at a time: what a message waits for, and what it costs beyond bare gloo."""
    pairs = list(zip(found[CHANNEL], found[RAW], strict=True))
    for way in WAYS:
        own = way == CHANNEL
        yield StepMetrics(
            name=f"{way}, {_size(load.nbytes)}, there and back",
            ranks=2,
            repeats=len(pairs),
            more={
                "way": way,
                "cpu_us": 1e6 * median(timed.cpu for timed in found[way]),
                "cpu_us_beyond_raw": 1e6 * median(ours.cpu - raw.cpu for ours, raw in pairs) if own else None,
                "latency_us": 1e6 * median(timed.seconds for timed in found[way]),
                "latency_us_beyond_raw": 1e6 * median(ours.seconds - raw.seconds for ours, raw in pairs)
                if own
                else None,
            },
        )


def _engine(brief: Brief) -> tuple[list[StepMetrics], list[Goal]]:
    """What the engine takes for a batch; a rank in the middle of three has neighbours on both sides, as most have."""
    noise(brief.folder, 2 * _BATCH, pixels=4, channels=1)
    limits, engine, nothing = zip(*(_round(brief) for _ in range(brief.options.rounds)), strict=True)
    added = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(engine, nothing, strict=True)]
    rows = [
        StepMetrics(name="engine, no work", ranks=2, repeats=len(limits), more={"wall_us": 1e6 * median(limits)}),
        _row("engine, 10 ms asleep", engine),
        _row("no engine, 10 ms asleep", nothing),
        _row("added by the engine", added),
    ]
    goals = [
        Goal(f"added by the engine to a stage of 10 ms, share of it, {what}", _OF_STAGE, median(seconds) / _STAGE, True)
        for what, seconds in zip(("by the clock", "of a processor's time"), zip(*added, strict=True), strict=True)
    ]
    return rows, goals


def _row(name: str, pairs: Sequence[Sequence[float]]) -> StepMetrics:
    wall, cpu = (median(seconds) for seconds in zip(*pairs, strict=True))
    more = {"wall_us": 1e6 * wall, "cpu_us": 1e6 * cpu, "share_of_10_ms": wall / _STAGE}
    return StepMetrics(name=name, ranks=_RANKS, batch=_BATCH, repeats=len(pairs), more=more)


def _round(brief: Brief) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Seconds a batch: of stages that take no time; and of stages that sleep, by the clock and of the processors of
    the rank in the middle, with the engine and without."""
    brief.log("the engine on blocks that sleep")
    limit = _slowest(_run(_contender(brief, 0.0, 2, _IDLE)))
    short, long = (_contender(brief, _STAGE, _RANKS, batches) for batches in (_FEW, _MORE))
    few, more = _run(short)[1], _run(long)
    alone = run(_SETTING, _RANKS, idle, long)
    engine = _slowest(more), (more[1].cpu_seconds - few.cpu_seconds) / (_MORE - _FEW)
    return limit, engine, (max(wall for wall, _ in alone), alone[1][1])


def _slowest(readings: Sequence[Reading]) -> float:
    return max(reading.lap.seconds / reading.lap.batches for reading in readings)


def _contender(brief: Brief, seconds: float, ranks: int, batches: int) -> Contender:
    sleep = Sleep(forward=seconds / 3, backward=2 * seconds / 3, update=0.0, batch=_BATCH, width=_WIDTH)
    return asleep(brief.conf, brief.folder, "free", sleep, ranks, batches)


def _run(contender: Contender) -> Sequence[Reading]:
    return run(_SETTING, contender.ranks, contender.task, contender)


def _ratio(row: StepMetrics) -> float:
    assert row.ratio_to_baseline is not None
    return row.ratio_to_baseline


def _bytes(row: StepMetrics) -> float:
    value = row.more["bytes"]
    assert isinstance(value, int)
    return value


def _size(nbytes: int) -> str:
    return f"{nbytes // _MEGA} MB" if nbytes >= _MEGA else f"{nbytes // _KILO} KB"


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """Bytes/s over sizes, and the ratio of the two."""
    rows = [row for row in note["rows"] if row.get("bytes")]

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        speed, ratio = axes
        for way, colour in ((CHANNEL, figures.colour("BLL")), (RAW, figures.colour("raw"))):
            points = [row for row in rows if row["way"] == way]
            sizes = [row["bytes"] for row in points]
            speed.plot(sizes, [row["mb_per_second"] for row in points], color=colour, marker="o", label=way)
            lowest, highest = ([row[f"mb_per_second_{end}"] for row in points] for end in ("lowest", "highest"))
            speed.fill_between(sizes, lowest, highest, color=colour, alpha=0.2, linewidth=0)
        speed.set_yscale("log")
        speed.set_ylabel("MB/s")
        speed.legend()
        points = [row for row in rows if row["way"] == CHANNEL]
        sizes = [row["bytes"] for row in points]
        ratio.plot(sizes, [row["ratio_to_baseline"] for row in points], color=figures.colour("BLL"), marker="o")
        ratio.fill_between(
            sizes,
            [row["ratio_lowest"] for row in points],
            [row["ratio_highest"] for row in points],
            color=figures.colour("BLL"),
            alpha=0.2,
            linewidth=0,
        )
        ratio.axhline(_OF_RAW, color="black", linewidth=1, linestyle="--")
        ratio.set_ylim(bottom=0)
        ratio.set_ylabel("bytes/s, channel over raw gloo")
        for ax in axes:
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes, [_size(nbytes) for nbytes in sizes], rotation=45)
            ax.minorticks_off()
        figure.suptitle("Messages between two processes; bands from lowest to highest")

    figures.save(folder / "transport.png", 1, 2, 3.8, paint)
