"""Suites ``emulated``, ``jitter``, ``scaling`` and ``slowlink``: schedules and engine alone, on blocks that sleep.

EMULATED: no arithmetic is done. A rank takes the same time for an update batch under every schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.cases import common_batch, schedule_label, valid_schedules
from counterflow.bench.charts import chart, colour, curves, draw_bars, draw_legend, log_ticks
from counterflow.bench.netem import LinkSpeed, emulated_network, unavailable_reason
from counterflow.bench.options import BenchContext
from counterflow.bench.results import (
    CaseResult,
    Goal,
    Measurements,
    SuiteResult,
    case_results,
    predict_seconds,
    run_rounds,
    speedup,
    with_predictions,
)
from counterflow.bench.sleeping import Jitter, Sleep
from counterflow.bench.workers import WorkerSettings
from counterflow.schedule.forecast import LinkSpec

_WIDTH = 32
"""Elements of an activation per sample, where messages are to be small."""

_GOAL_OF_IDEAL = {8: 0.95, 32: 0.93}
"""By ranks."""

_STEADY = ", nothing slow"

_LINK_BATCHES = 60
_SLOW, _FAST = "slow link", "fast link"


def measure_emulated(context: BenchContext) -> SuiteResult:
    """BLL beside all pipeline schedules of torch, from 2 to 32 ranks, and beside the simulator's predictions."""
    options = context.options
    context.cases.write_images(512, pixels=4, channels=1)
    results: list[CaseResult] = []
    settings: dict[str, Any] = {"rounds": options.rounds}
    for ranks in options.numbers("ranks", [2, 4, 8, 16, 32]):
        # Torch's schedules take about a millisecond of a core per micro-batch and rank. Blocks sleep long enough to
        # hide that on few cores. Above 8 ranks a batch would then take minutes: fewer micro-batches, and less time.
        many = ranks > 8
        multiples = (1,) if many else (1, 3) if options.quick else (1, 2, 3, 4)
        microbatches = options.numbers("microbatches", [multiple * ranks for multiple in multiples])
        total_ms = 300.0 if options.quick else 1000.0 if many else max(300.0, 10.0 * ranks * max(microbatches))
        times = options.stage.seconds(total_ms / 3, 2 * total_ms / 3)
        sleep = Sleep(*times, common_batch(microbatches), _WIDTH)
        settings |= {key if key == "emulated" else f"{key}, P={ranks}": value for key, value in sleep.settings.items()}
        results += _emulated_results(context, ranks, sleep, microbatches)
    goals = []
    for result in results:
        ranks = result.ranks
        if result.name == "BLL" and ranks in _GOAL_OF_IDEAL:
            share = result.extra["share_of_ideal"]
            goals.append(Goal.of(f"P={ranks}: share of the ideal rate", _GOAL_OF_IDEAL[ranks], share, [result]))
        if result.name == "BLL" and ranks == 8 and result.baseline == schedule_label("1f1b", 24):
            rows = [row for row in results if row.ranks == ranks and row.name in (result.name, result.baseline)]
            goals.append(Goal.of(f"P=8: over {result.baseline}", 1.20, result.ratio_to_baseline, rows))
    return SuiteResult("emulated", settings, results, goals)


def _emulated_results(context: BenchContext, ranks: int, sleep: Sleep, microbatches: Sequence[int]) -> list[CaseResult]:
    """Results of all cases on ``ranks``.

    Args:
        context: Context of the suite.
        ranks: Processes, and blocks of BLL.
        sleep: Times of a rank.
        microbatches: All numbers of micro-batches of pipelines.
    """
    # BLL: 12 timed update batches, after half as many for the fill. Pipelines fill and drain in every batch: 3 of 4.
    cases = [context.cases.sleeping("free", sleep, ranks, batches=18)] + [
        context.cases.sleeping(schedule, sleep, ranks, batches=4, microbatches=m)
        for m in microbatches
        for schedule in valid_schedules(ranks, m)
        if not context.options.quick or schedule in ("gpipe", "1f1b")
    ]
    names = [case.name for case in cases]
    baseline = next((n for m in (3 * ranks, ranks) if (n := schedule_label("1f1b", m)) in names), names[-1])
    measured = run_rounds(cases, context.options.rounds, WorkerSettings(60 + 50 * sleep.total), context.log)
    return with_predictions(case_results(cases, measured, baseline), cases, [schedule_label("1f1b", microbatches[0])])


def draw_emulated(suite: Mapping[str, Any], folder: Path) -> None:
    """Charts of the share of the ideal rate over micro-batches, measured and predicted, one per number of ranks."""
    counts = sorted({row["ranks"] for row in suite["rows"]})
    columns = min(3, len(counts))
    with chart(folder / "emulated.png", -(-len(counts) // columns), columns, 3.4) as (figure, axes):
        for ax in axes[len(counts) :]:
            ax.remove()
        for ax, ranks in zip(axes, counts, strict=False):
            _draw_shares(ax, [row for row in suite["rows"] if row["ranks"] == ranks])
            ax.set(title=f"{ranks} ranks", xlabel="micro-batches")
        axes[0].set_ylabel("share of the ideal rate [%]")
        draw_legend(figure, axes[0])
        figure.suptitle("Blocks that sleep; crosses are predictions (emulated)")


def _draw_shares(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    ticks = sorted({row["microbatches"] for row in rows if row["microbatches"]})
    for name, points in curves(rows, _schedule).items():
        # A case without micro-batches is a horizontal line.
        x = [point["microbatches"] for point in points] if points[0]["microbatches"] else ticks
        points = points if points[0]["microbatches"] else points * len(ticks)
        share = [100 * point["share_of_ideal"] for point in points]
        predicted = [s * (1 + point["prediction_error"]) for s, point in zip(share, points, strict=True)]
        ax.plot(x, share, color=colour(name), marker="o", markersize=4, label=name)
        ax.plot(x, predicted, color=colour(name), marker="x", linestyle="none")
    ax.set(xticks=ticks, ylim=(0, 105))


def _schedule(row: Mapping[str, Any]) -> str:
    """Name of the schedule, without the number of micro-batches."""
    return str(row["name"]).split(" m=")[0]


def measure_jitter(context: BenchContext) -> SuiteResult:
    """Several depths of queues, where one random block takes three times as long in a tenth of all batches."""
    options = context.options
    ranks = options.numbers("ranks", [8])[0]
    microbatches = options.numbers("microbatches", [3 * ranks])
    jitter = Jitter(share=0.1, factor=3.0, blocks=ranks)
    sleep = Sleep(*options.stage.seconds(60.0, 120.0), common_batch(microbatches), _WIDTH, jitter)
    steady = replace(sleep, jitter=None)
    context.cases.write_images(512, pixels=4, channels=1)
    sleeping, batches = context.cases.sleeping, 60
    cases = [
        sleeping(
            "free",
            sleep,
            ranks,
            batches,
            options=[f"engine.depth={depth}", f"engine.lag={max(2, depth)}"],
            name=f"BLL depth {depth}",
        )
        for depth in (1, 2, 4, 8)
    ]
    cases.append(sleeping("free", steady, ranks, batches, name="BLL" + _STEADY))
    for m in microbatches:
        cases += [
            sleeping("1f1b", sleep, ranks, batches=32, microbatches=m),
            sleeping("1f1b", steady, ranks, batches=6, microbatches=m, name=schedule_label("1f1b", m) + _STEADY),
        ]
    baseline = schedule_label("1f1b", microbatches[0])
    measured = run_rounds(cases, options.rounds, WorkerSettings(60 + 3 * batches * sleep.total), context.log)
    results = with_predictions(case_results(cases, measured, baseline), cases, ["BLL" + _STEADY, baseline + _STEADY])
    return SuiteResult(
        "jitter",
        sleep.settings | {"share_of_slow_batches": jitter.share, "factor": jitter.factor, "rounds": options.rounds},
        results,
        [_over(results, measured, "BLL depth 4", baseline, 1.25)],
    )


def _over(results: Sequence[CaseResult], measured: Measurements, name: str, other: str, wanted: float) -> Goal:
    """The goal that the case ``name`` is ``wanted`` times as fast as ``other``."""
    rows = [row for row in results if row.name in (name, other)]
    return Goal.of(f"{name} over {other}", wanted, speedup(measured[name], measured[other]), rows)


def draw_jitter(suite: Mapping[str, Any], folder: Path) -> None:
    draw_bars(folder / "jitter.png", suite["rows"], "One block takes 3x as long in 10 % of batches (emulated)")


def measure_scaling(context: BenchContext) -> SuiteResult:
    """Weak scaling: as many ranks as blocks, each with the same work."""
    options = context.options
    times = options.stage.seconds(100.0, 200.0)
    context.cases.write_images(512, pixels=4, channels=1)
    results: list[CaseResult] = []
    for ranks in options.numbers("ranks", [1, 2, 4, 8, 16]):
        microbatches = options.numbers("microbatches", [2 * ranks])
        sleep = Sleep(*times, common_batch(microbatches), _WIDTH)
        cases = [context.cases.sleeping("free", sleep, ranks, batches=24)] + [
            context.cases.sleeping("1f1b", sleep, ranks, batches=8, microbatches=m)
            for m in (microbatches if ranks > 1 else [])
        ]
        measured = run_rounds(cases, options.rounds, WorkerSettings(60 + 100 * sleep.total), context.log)
        results += with_predictions(case_results(cases, measured, cases[-1].name), cases)
    return SuiteResult("scaling", sleep.settings | {"rounds": options.rounds}, results, [])


def draw_scaling(suite: Mapping[str, Any], folder: Path) -> None:
    """Chart of the share of the ideal rate over the number of ranks."""
    with chart(folder / "scaling.png", 1, 1, 3.6) as (_, (axes,)):
        for name, rows in curves(suite["rows"], _schedule).items():
            ranks, share = [row["ranks"] for row in rows], [100 * row["share_of_ideal"] for row in rows]
            label = f"{name}, m = 2P" if name == "1F1B" else name
            axes.plot(ranks, share, color=colour(name), marker="o", label=label)
        log_ticks(axes, {row["ranks"]: str(row["ranks"]) for row in suite["rows"]})
        axes.set(ylim=(0, 105), xlabel="ranks, and blocks", ylabel="share of the ideal rate [%]")
        axes.set_title("Weak scaling (emulated)")
        axes.legend()


def measure_slowlink(context: BenchContext) -> SuiteResult:
    """Slow links on every edge between ranks: 1 Gb/s and 10 ms one way, and how much of that a lag hides.

    The slow link is a router in user space between network namespaces (`counterflow.bench.netem`); TCP, gloo and
    everything above are real. The fast link is the loopback of this machine.

    Raises:
        ValueError: This machine cannot emulate links.
    """
    if (reason := unavailable_reason()) is not None:
        raise ValueError(f"suite=slowlink: this machine allows no network namespaces with tunnels ({reason})")
    options = context.options
    ranks = options.numbers("ranks", [4])[0]
    microbatches = options.numbers("microbatches", [ranks, 2 * ranks])
    speed = LinkSpeed(options.link.bandwidth_gbps * 1e9 / 8, options.link.latency_ms / 1e3)
    link = LinkSpec(speed.latency, speed.bandwidth)
    batch = common_batch(microbatches)
    width = options.link.activation_kb * 1024 // 4 // batch
    sleep = Sleep(*options.stage.seconds(5.0, 10.0), batch, width)
    context.cases.write_images(512, pixels=4, channels=1)

    def bll(lag: int, where: str) -> BenchmarkCase:
        return context.cases.sleeping(
            "free", sleep, ranks, _LINK_BATCHES, options=[f"engine.lag={lag}"], name=f"BLL lag {lag}, {where}"
        )

    def pipeline(m: int, where: str) -> BenchmarkCase:
        name = f"{schedule_label('1f1b', m)}, {where}"
        return context.cases.sleeping("1f1b", sleep, ranks, batches=14, microbatches=m, name=name)

    # The smallest lag with which the predicted rate is within 1 % of the best one.
    seconds = {lag: predict_seconds(bll(lag, _SLOW), link) for lag in range(2, 17)}
    lag = next(lag for lag, predicted in seconds.items() if predicted <= 1.01 * min(seconds.values()))
    cases = [bll(each, where) for each in sorted({2, lag}) for where in (_SLOW, _FAST)]
    cases += [pipeline(m, where) for m in microbatches for where in (_SLOW, _FAST)]
    with emulated_network(ranks, speed) as network:
        measured = run_rounds(
            cases,
            options.rounds,
            WorkerSettings(timeout=90 + 10 * _LINK_BATCHES * (sleep.total + speed.latency)),
            context.log,
            lambda case: network if case.name.endswith(_SLOW) else None,
        )
    pipelines = [case.name for case in cases if case.microbatches and case.name.endswith(_SLOW)]
    baseline = max(pipelines, key=lambda name: speedup(measured[name], measured[pipelines[0]]))
    results = with_predictions(
        case_results(cases, measured, baseline),
        cases,
        [f"BLL lag 2, {_FAST}", pipelines[0].replace(_SLOW, _FAST)],
        lambda case: link if case.name.endswith(_SLOW) else None,
    )
    best = f"BLL lag {lag}, {_SLOW}"
    return SuiteResult(
        "slowlink",
        settings=sleep.settings
        | {
            "link": "a router in user space; TCP and gloo over it are real",
            **asdict(options.link),
            "planned_lag": lag,
            "rounds": options.rounds,
        },
        cases=results,
        goals=[
            _over(results, measured, best, f"BLL lag {lag}, {_FAST}", 0.98),
            _over(results, measured, best, baseline, 1.5),
        ],
    )


def draw_slowlink(suite: Mapping[str, Any], folder: Path) -> None:
    settings = suite["settings"]
    link = f"Links of {settings['bandwidth_gbps']:g} Gb/s and {settings['latency_ms']:g} ms"
    draw_bars(
        folder / "slowlink.png", suite["rows"], f"{link}, activations of {settings['activation_kb']} KB (emulated)"
    )
