"""Suite ``memory``: peak bytes of a rank over the number of ranks, for a network of N = P equal blocks.

Two comparisons, which are never mixed. ``equal message``: a message of BLL for a batch is as large as a message of a
pipeline for a micro-batch, so that both compute in equal pieces; the update batch of a pipeline is m times larger.
``equal update``: all update on equally many samples, which a pipeline cuts into m parts and BLL does not cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.cases import common_batch, schedule_label
from counterflow.bench.charts import chart, colour, curves, draw_legend
from counterflow.bench.interleaved_rounds import peak_bytes
from counterflow.bench.memory_tracker import train_tracked
from counterflow.bench.options import BenchContext
from counterflow.bench.results import CaseResult, Goal, SuiteResult
from counterflow.bench.workers import WorkerSettings, run_workers

_SAMPLES = 16
"""Samples of an equal message."""
_CHANNELS, _PIXELS, _LAYERS = 64, 8, 4
"""Each block has 4 convolutions with batch norm and ReLU, whose activations have equal sizes."""
_BLL = "BLL"
_EQUAL_MESSAGE, _EQUAL_UPDATE = "equal message", "equal update"
_GROWTH_GOAL, _RATIO_GOAL, _RATIO_GOAL_RANKS = 0.10, 6.0, 8
_MARKERS = {"BLL": ("o", 4), "1F1B": ("s", 6), "GPipe": ("^", 10), "split": ("x", 6), "BP": ("D", 5)}
"""Shape and size, so that equal values remain visible."""


def measure_memory(context: BenchContext) -> SuiteResult:
    """Peaks of saved tensors and message buffers, of BLL, pipelines, and backprop without a pipeline."""
    default = [1, 2, 8] if context.options.quick else [1, 2, 4, 8]
    microbatches = {
        # One rank is no pipeline.
        ranks: [m for m in context.options.numbers("microbatches", [ranks, 2 * ranks]) if ranks > 1 and m >= ranks]
        for ranks in context.options.numbers("ranks", default)
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
    settings = {
        "block": f"{_LAYERS} convolutions of {_CHANNELS} channels, batch norm, ReLU, {_PIXELS} x {_PIXELS} pixels",
        "samples of an equal message": _SAMPLES,
        "samples of an equal update": update,
        "counted": "what autograd keeps, and buffers of messages; no parameters, gradients, optimizers",
    }
    return SuiteResult("memory", settings, results, list(_goals(results)))


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
        batches = 2 * processes + 2 if name == _BLL else 2
        return context.cases.training(name, processes, batches, 1, update or m * _SAMPLES, options)

    yield case(_BLL, ranks, 1, "algorithm=bll")
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
            "all_mb": bottom.all / 1e6,
            "all_mb_of_the_most": max(each.all for each in ranks) / 1e6,
        },
    )


def _goals(results: Sequence[CaseResult]) -> Iterator[Goal]:
    equal = [result for result in results if result.extra["comparison"] == _EQUAL_MESSAGE]
    bottom = [result.extra["saved_mb"] for result in equal if result.name == _BLL]
    if len(bottom) > 1:
        text = "equal message: most over least of stage 0 of BLL, whatever P, less 1"
        yield Goal(text, _GROWTH_GOAL, max(bottom) / min(bottom) - 1, at_most=True)
    for result in equal:
        if result.ranks == _RATIO_GOAL_RANKS and result.name.startswith("1F1B"):
            text = f"equal message: P={result.ranks}: stage 0 of {result.name} over BLL's"
            yield Goal(text, _RATIO_GOAL, result.extra["saved_over_bll"])


def draw_memory(suite: Mapping[str, Any], folder: Path) -> None:
    """Charts of the bytes that autograd keeps on the bottom stage, one per comparison."""
    with chart(folder / "memory.png", 1, 2, 4.2) as (figure, axes):
        for ax, comparison in zip(axes, (_EQUAL_MESSAGE, _EQUAL_UPDATE), strict=True):
            _draw_curves(ax, [row for row in suite["rows"] if row["comparison"] == comparison])
            ax.set(title=comparison, xlabel="blocks, and ranks")
        axes[0].set_ylabel("kept by stage 0 at its peak [MB]")
        draw_legend(figure, axes[0])


def _draw_curves(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for label, points in curves(rows, _label).items():
        marker, size = _MARKERS[label.split(",")[0].split(" ")[0]]
        ax.plot(
            [point["blocks"] for point in points],
            [point["saved_mb"] for point in points],
            color=colour(label.replace(",", "")),
            linestyle="--" if label.endswith("2P") else "-",
            marker=marker,
            markersize=size,
            markerfacecolor="none",
            label=label,
        )
    ticks = sorted({row["blocks"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _label(row: Mapping[str, Any]) -> str:
    """Name of a curve: the same for all numbers of ranks."""
    name, _, microbatches = str(row["name"]).partition(" m=")
    return f"{name}, m = {int(microbatches) / row['ranks']:g}P".replace("1P", "P") if microbatches else name
