"""Suites ``cpu2``, ``flops``, ``timeline`` and ``memory``: networks that really train, or whose work is counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from counterflow.bench.case import BenchmarkCase, count_flops, train_ddp, train_traced
from counterflow.bench.cases import common_batch, conv_network, schedule_label
from counterflow.bench.charts import chart, colour, curves, draw_bars, draw_legend, log_ticks
from counterflow.bench.memory_tracker import train_tracked
from counterflow.bench.options import BenchContext
from counterflow.bench.results import (
    CaseResult,
    Goal,
    RoundMeasurement,
    SuiteResult,
    case_results,
    peak_bytes,
    run_rounds,
    speedup,
)
from counterflow.bench.sleeping import Sleep
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.trace.timeline import Panel, draw

_BATCH = 128
_TIMEOUT = 120.0
"""Seconds of one measurement."""

_CPU2_PIXELS = 16
_CPU2_CONVOLUTIONS = 9
"""The first one, with three input channels, costs a sixteenth of the others: both halves have four equal ones."""
_CPU2_WARMUP, _CPU2_TIMED = 4, 16
_LOCAL_ALGORITHMS = {
    "BLL": ["algorithm=bll", "algorithm.head.convolutions=0"],
    "BLL, latent heads of 3 convolutions": ["algorithm=bll", "algorithm.head.convolutions=3"],
    "AL": ["algorithm=al"],
    "Pred-Sim": ["algorithm=predsim"],
}

_FLOPS_BLOCKS = 4
_FLOPS_GOAL = 0.08

_TIMELINE_BATCHES, _TIMELINE_SHOWN, _TIMELINE_CONVOLUTIONS = 24, 8, 8

_SAMPLES = 16
"""Samples of an equal message."""
_CHANNELS, _PIXELS, _LAYERS = 64, 8, 4
"""Each block has 4 convolutions with batch norm and ReLU, whose activations have equal sizes."""
_EQUAL_MESSAGE, _EQUAL_UPDATE = "equal message", "equal update"
_MARKERS = {
    "BLL": ("o", 4),
    "1F1B": ("s", 6),
    "GPipe": ("^", 10),
    "split": ("x", 6),
    "BP": ("D", 5),
    "PipeDream": ("v", 5),
}
"""Shape and size, so that equal values remain visible."""


def measure_cpu2(context: BenchContext) -> SuiteResult:
    """Two ranks of one thread each, and a network of two equal halves. All cases train it on the same batches."""
    options = context.options
    context.cases.write_images(4 * _BATCH, _CPU2_PIXELS, channels=3)

    def case(name: str, ranks: int, *overrides: str) -> BenchmarkCase:
        network = [f"blocks={ranks}", *conv_network(_CPU2_CONVOLUTIONS), *overrides]
        return context.cases.training(name, ranks, _CPU2_WARMUP + _CPU2_TIMED, _CPU2_WARMUP, _BATCH, network)

    def pipeline(name: str, schedule: str, m: int) -> BenchmarkCase:
        return case(name, 2, "algorithm=bp", f"schedule={schedule}", f"train.microbatches={m}", "model.cut=profile")

    microbatches = options.numbers("microbatches", [4, 8] if options.quick else [2, 4, 8, 16])
    cases = [
        *(case(name, 2, *overrides, "model.cut=profile") for name, overrides in _LOCAL_ALGORITHMS.items()),
        *(pipeline(schedule_label(s, m), s, m) for m in microbatches for s in ("gpipe", "1f1b")),
        pipeline("split over two ranks", "gpipe", 1),
        case("one process", 1, "algorithm=bp"),
        replace(case("DDP", 1, "algorithm=bp"), ranks=2, task=train_ddp, microbatches=None),
    ]
    baseline = schedule_label("1f1b", 4) if 4 in microbatches else "DDP"
    measured = run_rounds(cases, options.rounds, WorkerSettings(_TIMEOUT, pinned=True), context.log)
    return SuiteResult(
        "cpu2",
        settings={
            "network": f"{_CPU2_CONVOLUTIONS} convolutions of 48 channels, batch norm, an output layer",
            "samples": f"{_BATCH} of {_CPU2_PIXELS} x {_CPU2_PIXELS} pixels",
            "threads": 1,
            "batches": _CPU2_TIMED,
            "rounds": options.rounds,
            "cut": "; ".join(sorted({str(list(one.ranks[0].cut)) for one in measured["BLL"]})),
        },
        cases=case_results(cases, measured, baseline),
        goals=[
            Goal(f"BLL over {name}", wanted, speedup(measured["BLL"], measured[name]))
            for name, wanted in (("1F1B m=4", 1.25), ("GPipe m=4", 1.35), ("1F1B m=8", 1.08))
            if name in measured
        ],
    )


def draw_cpu2(suite: Mapping[str, Any], folder: Path) -> None:
    """Chart of samples per second, with ratios to the baseline."""
    rows = suite["rows"]
    draw_bars(folder / "cpu2.png", rows, f"Two ranks of one thread, batch {_BATCH}; ratios to {rows[0]['baseline']}")


def measure_flops(context: BenchContext) -> SuiteResult:
    """FLOPs of block-local learning beyond backprop's (feedback, latent heads, local losses), by torch's counter."""
    context.cases.write_images(2 * _BATCH, pixels=32, channels=3)
    results, shares = [], []
    for model in ("resnet18", "resnet20", "resnet32", "resnet50"):
        for convolutions in (0, 1, 3):  # of the latent head
            head = f"{convolutions} convolutions and pooling" if convolutions else "pooled head"
            context.log(f"{model}, {head}")
            options = [
                f"blocks={_FLOPS_BLOCKS}",
                f"model={model}",
                "algorithm=bll",
                f"algorithm.head.convolutions={convolutions}",
            ]
            (cost,) = run_workers(WorkerSettings(300.0), 1, count_flops, context.cases.config(_BATCH, options))
            share = cost.learning / cost.backprop - 1
            shares += [] if convolutions else [share]
            results.append(
                CaseResult(name=f"{model}, {head}", ranks=1, batch=_BATCH).with_extra(
                    model=model,
                    convolutions=float(convolutions),
                    network_mflops=cost.forward / 1e6,
                    backprop_mflops=cost.backprop / 1e6,
                    share_beyond_backprop=share,
                )
            )
    return SuiteResult(
        "flops",
        {"images": "3 x 32 x 32", "blocks": _FLOPS_BLOCKS, "batch": _BATCH},
        results,
        [Goal("pooled head, most of all ResNets", _FLOPS_GOAL, max(shares), at_most=True)],
    )


def draw_flops(suite: Mapping[str, Any], folder: Path) -> None:
    """Chart with one bar per network and head."""
    rows = suite["rows"][::-1]
    with chart(folder / "flops.png", 1, 1, 0.3 * len(rows) + 1) as (_, (axes,)):
        axes.barh(range(len(rows)), [100 * row["share_beyond_backprop"] for row in rows], color=colour("BLL"))
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.axvline(100 * _FLOPS_GOAL, color="black", linewidth=1, linestyle=":")
        axes.set_xlabel("FLOPs beyond backprop's [%]")


def measure_timeline(context: BenchContext) -> SuiteResult:
    """Timelines of all ranks: the measured counterpart of Figure 2 (right) of the BLL paper, beside GPipe and 1F1B.

    Two pictures are drawn here, since spans are not part of the results. ``timeline.png`` shows a network that really
    trains, and needs a core per rank. In ``timeline_emulated.png`` blocks sleep, so that few cores are enough.
    """
    options = context.options
    ranks = options.numbers("ranks", [4])[0]
    microbatches = options.numbers("microbatches", [2 * ranks])[0]
    sleep = Sleep(*options.stage.seconds(20.0, 40.0, 2.0), common_batch([microbatches]), width=32)
    context.cases.write_images(4 * _BATCH, pixels=16, channels=3)
    network = [
        f"blocks={ranks}",
        *conv_network(_TIMELINE_CONVOLUTIONS),
        "model.cut=flops",
        f"train.microbatches={microbatches}",
    ]

    def training(schedule: str) -> BenchmarkCase:
        algorithm = [f"algorithm={'bll' if schedule == 'free' else 'bp'}", f"schedule={schedule}"]
        name = schedule_label(schedule, microbatches)
        return context.cases.training(name, ranks, _TIMELINE_BATCHES, 2, _BATCH, [*network, *algorithm])

    def sleeping(schedule: str) -> BenchmarkCase:
        return replace(context.cases.sleeping(schedule, sleep, ranks, _TIMELINE_BATCHES, microbatches), warmup=2)

    results = []
    for suffix, kind in (("", training), (" (emulated)", sleeping)):
        cases, measured, panels = [kind(schedule) for schedule in ("free", "1f1b", "gpipe")], {}, []
        for case in cases:
            context.log(case.name + suffix)
            traced = run_workers(WorkerSettings(_TIMEOUT), ranks, train_traced, case)
            measured[case.name] = [RoundMeasurement([rank for rank, _ in traced], case.config.train.batch_size)]
            panels.append(Panel(case.name, [track for _, track in traced]))
        draw(panels, context.out / f"timeline{'_emulated' if suffix else ''}.png", range(_TIMELINE_SHOWN))
        results += [
            replace(result, name=result.name + suffix, baseline=f"{result.baseline}{suffix}")
            for result in case_results(cases, measured, schedule_label("1f1b", microbatches))
        ]
    shown = f"{_TIMELINE_SHOWN} of {_TIMELINE_BATCHES} batches shown"
    return SuiteResult(
        "timeline",
        settings={
            "network": f"{_TIMELINE_CONVOLUTIONS} convolutions of 48 channels, {shown}",
            **{f"sleeping_{key}": value for key, value in sleep.settings.items() if key != "emulated"},
        },
        cases=results,
        goals=[],
    )


def measure_memory(context: BenchContext) -> SuiteResult:
    """Peaks of saved tensors, message buffers and stashed weights, of BLL, PipeDream, pipelines, and backprop without a
    pipeline.

    The network has as many equal blocks as there are ranks. Two comparisons are never mixed. ``equal message``: a
    message of BLL for a batch is as large as a message of a pipeline for a micro-batch, so that both compute in equal
    pieces; the update batch of a pipeline is m times larger. ``equal update``: all update on equally many samples,
    which a pipeline cuts into m parts, BLL does or does not (``train.accumulate``), and PipeDream does not.
    """
    options = context.options
    microbatches = {
        # One rank is no pipeline.
        ranks: [m for m in options.numbers("microbatches", [ranks, 2 * ranks]) if ranks > 1 and m >= ranks]
        for ranks in options.numbers("ranks", [1, 2, 8] if options.quick else [1, 2, 4, 8])
    }
    numbers = [m for some in microbatches.values() for m in some]
    update = common_batch(numbers or [1])
    context.cases.write_images(max(update, 64, *(m * _SAMPLES for m in numbers)), _PIXELS, 1)
    results = []
    for comparison in (_EQUAL_MESSAGE, _EQUAL_UPDATE):
        for ranks, some in microbatches.items():
            cases = _cases(context, ranks, some, update if comparison == _EQUAL_UPDATE else None)
            row = [_measure_case(context, case, comparison, ranks) for case in cases]
            results += [
                result.with_extra(
                    saved_over_bll=result.extra["saved_mb"] / row[0].extra["saved_mb"],
                    all_over_bll=result.extra["all_mb"] / row[0].extra["all_mb"],
                )
                for result in row
            ]
    return SuiteResult(
        "memory",
        settings={
            "block": f"{_LAYERS} convolutions of {_CHANNELS} channels, batch norm, ReLU, {_PIXELS} x {_PIXELS} pixels",
            "samples of an equal message": _SAMPLES,
            "samples of an equal update": update,
            "counted": "what autograd keeps, messages, stashed weights; no parameters, gradients, optimizers",
        },
        cases=results,
        goals=list(_goals(results)),
    )


def _cases(
    context: BenchContext, ranks: int, microbatches: Sequence[int], update: int | None
) -> Iterator[BenchmarkCase]:
    """All cases of ``ranks`` blocks, BLL first.

    Args:
        context: Context of the suite.
        ranks: Ranks of all cases but backprop in one process.
        microbatches: Numbers of micro-batches of pipelines.
        update: Samples of an equal update; None for equal messages.
    """
    layers = _LAYERS * ranks
    network = [
        "model=cnn",
        f"model.channels={[_CHANNELS] * layers}",
        f"model.strides={[1] * layers}",
        f"model.cut={[_LAYERS] * (ranks - 1) + [_LAYERS + 1]}",
        f"blocks={ranks}",
    ]

    def case(name: str, processes: int, m: int, *system: str) -> BenchmarkCase:
        device = ["device=cuda"] if torch.cuda.device_count() >= processes else []  # torch's pipelines: one per rank
        options = [*network, *system, f"train.microbatches={m}", *device]
        # Until all are filled, and a bit more.
        batches = 2 * processes + 2 if name.startswith(("BLL", "PipeDream")) else 2
        return context.cases.training(name, processes, batches, 1, update or m * _SAMPLES, options)

    yield case("BLL", ranks, 1, "algorithm=bll")
    yield case("BLL, recomputed", ranks, 1, "algorithm=bll", "engine.recompute=true")
    for m in microbatches if update else []:
        yield case(f"BLL m={m}", ranks, 1, "algorithm=bll", f"train.accumulate={m}")
    if ranks > 1:
        yield case("PipeDream", ranks, 1, "algorithm=bp", "schedule=pipedream", "engine.lag=1")
    for schedule in ("1f1b", "gpipe"):
        for m in microbatches:
            yield case(schedule_label(schedule, m), ranks, m, "algorithm=bp", f"schedule={schedule}")
    if ranks > 1:
        yield case("split, no pipeline", ranks, 1, "algorithm=bp", "schedule=gpipe")
    yield case("BP, one process", 1, 1, "algorithm=bp")


def _measure_case(context: BenchContext, case: BenchmarkCase, comparison: str, blocks: int) -> CaseResult:
    """The result of one case, of one of the two comparisons, on a network of ``blocks``."""
    context.log(f"{comparison}: P={blocks}: {case.name}")
    ranks = run_workers(WorkerSettings(timeout=300), case.ranks, train_tracked, case)
    bottom = ranks[0]
    return CaseResult(
        name=case.name,
        ranks=case.ranks,
        **peak_bytes([each.rank for each in ranks]),
        batch=case.config.train.batch_size,
        microbatches=case.microbatches,
        extra={
            "comparison": comparison,
            "blocks": blocks,
            "saved_mb": bottom.saved / 1e6,
            "saved_mb_of_each": " ".join(f"{each.saved / 1e6:.2f}" for each in ranks),
            "messages_mb": bottom.messages / 1e6,
            "messages_mb_of_the_most": max(each.messages for each in ranks) / 1e6,
            "stashed_mb": bottom.stashes / 1e6,
            "stashed_mb_of_each": " ".join(f"{each.stashes / 1e6:.2f}" for each in ranks),
            "all_mb": bottom.all / 1e6,
            "all_mb_of_the_most": max(each.all for each in ranks) / 1e6,
        },
    )


def _goals(results: Sequence[CaseResult]) -> Iterator[Goal]:
    equal = [result for result in results if result.extra["comparison"] == _EQUAL_MESSAGE]
    bottom = [result.extra["saved_mb"] for result in equal if result.name == "BLL"]
    if len(bottom) > 1:
        growth = max(bottom) / min(bottom) - 1
        yield Goal("equal message: most over least of stage 0 of BLL, whatever P, less 1", 0.10, growth, at_most=True)
    for result in equal:
        if result.ranks == 8 and result.name.startswith("1F1B"):
            yield Goal(f"equal message: P=8: stage 0 of {result.name} over BLL's", 6.0, result.extra["saved_over_bll"])
    update = {
        result.name: result.extra["saved_mb"]
        for result in results
        if result.extra["comparison"] == _EQUAL_UPDATE and result.ranks == 8
    }
    if {"BLL m=8", "1F1B m=8"} <= update.keys():
        share = update["BLL m=8"] / update["1F1B m=8"]
        yield Goal("equal update: P=8: stage 0 of BLL m=8 over that of 1F1B m=8", 0.25, share, at_most=True)


def draw_memory(suite: Mapping[str, Any], folder: Path) -> None:
    """Charts of the bytes that autograd keeps on the bottom stage, one per comparison."""
    with chart(folder / "memory.png", 1, 2, 4.2) as (figure, axes):
        for ax, comparison in zip(axes, (_EQUAL_MESSAGE, _EQUAL_UPDATE), strict=True):
            _draw_curves(ax, [row for row in suite["rows"] if row["comparison"] == comparison])
            ax.set(title=comparison, xlabel="blocks, and ranks")
        axes[0].set_ylabel("kept by stage 0 at its peak [MB]")
        draw_legend(figure, axes[1])  # of equal updates, which has the curves of both


def _draw_curves(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for label, points in curves(rows, _label).items():
        marker, size = _MARKERS[label.split(",")[0].split(" ")[0]]
        ax.plot(
            [point["blocks"] for point in points],
            [point["saved_mb"] for point in points],
            color=colour(label.replace(",", "")),
            linestyle=_line(label),
            marker=marker,
            markersize=size,
            markerfacecolor="none",
            label=label,
        )
    log_ticks(ax, {row["blocks"]: str(row["blocks"]) for row in rows})
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _line(label: str) -> str:
    """Line style of a curve."""
    if label.endswith("recomputed"):
        return ":"
    return "--" if label.endswith("2P") else "-." if label.startswith("BLL, m") else "-"


def _label(row: Mapping[str, Any]) -> str:
    """Name of a curve: the same for all numbers of ranks."""
    name, _, microbatches = str(row["name"]).partition(" m=")
    return f"{name}, m = {int(microbatches) / row['ranks']:g}P".replace("1P", "P") if microbatches else name
