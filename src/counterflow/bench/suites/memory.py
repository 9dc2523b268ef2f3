"""What a rank holds at its peak, against the number of ranks, of a network that grows with them: N = P equal blocks.

Two comparisons, which are never mixed. ``equal message``: what BLL sends for a batch is as large as what a pipeline
sends for a micro-batch, so that arithmetic is done in equal pieces; the update batch of a pipeline is m times larger.
``equal update``: all update on equally many samples, which a pipeline cuts into m parts, and BLL into none.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.accounts import account
from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import awake, common_batch, noise, title
from counterflow.bench.row import Goal, Result, StepMetrics

_SAMPLES = 16
"""Samples of a message, where all have equal ones."""
_CHANNELS, _PIXELS, _LAYERS = 64, 8, 4
"""Of every block: convolutions with batch norm and ReLU, whose maps are all alike."""
_BLL, _ALONE = "BLL", "BP, one process"
_BY_MESSAGE, _BY_UPDATE = "equal message", "equal update"
_FLAT, _BELOW, _AT = 0.10, 6.0, 8
_MARKERS = {"BLL": ("o", 4), "1F1B": ("s", 6), "GPipe": ("^", 10), "split": ("x", 6), "BP": ("D", 5)}
"""Shape and size: many of them hold exactly as much as another one."""


def measure(brief: Brief) -> Result:
    options = brief.options
    default = [1, 2, 8] if options.quick else [1, 2, 4, 8]
    parts = {ranks: _parts(brief, ranks) for ranks in options.numbers("ranks", default)}
    update = common_batch([m for some in parts.values() for m in some] or [1])
    noise(brief.folder, max(update, *(m * _SAMPLES for some in parts.values() for m in some), 64), _PIXELS, 1)
    found = []
    for comparison in (_BY_MESSAGE, _BY_UPDATE):
        for ranks, some in parts.items():
            rows = [
                _row(brief, contender, comparison, ranks)
                for contender in _contenders(brief, ranks, some, update if comparison == _BY_UPDATE else None)
            ]
            found += [_beside(row, rows[0]) for row in rows]
    settings = {
        "block": f"{_LAYERS} convolutions of {_CHANNELS} channels, batch norm, ReLU, {_PIXELS} x {_PIXELS} pixels",
        "samples of an equal message": _SAMPLES,
        "samples of an equal update": update,
        "counted": "what autograd keeps, and buffers of messages; no parameters, gradients, optimizers",
    }
    return Result("memory", settings, found, list(_goals(found)))


def _parts(brief: Brief, ranks: int) -> list[int]:
    """Micro-batches of pipelines of ``ranks``; one rank is no pipeline."""
    if ranks == 1:
        return []
    numbers = brief.options.numbers("microbatches", [ranks, 2 * ranks])
    return [m for m in numbers if m >= ranks]


def _contenders(brief: Brief, ranks: int, parts: Sequence[int], update: int | None) -> Iterator[Contender]:
    """BLL first. Of ``update`` samples for each update, or of equal messages."""
    local = ["algorithm=bll"]
    yield _contender(brief, _BLL, ranks, ranks, update or _SAMPLES, local)
    for schedule in ("1f1b", "gpipe") if parts else ():
        for m in parts:
            pipeline = ["algorithm=bp", f"schedule={schedule}", f"train.microbatches={m}"]
            yield _contender(brief, title(schedule, m), ranks, ranks, update or m * _SAMPLES, pipeline)
    if ranks > 1:
        split = ["algorithm=bp", "schedule=gpipe", "train.microbatches=1"]
        yield _contender(brief, "split, no pipeline", ranks, ranks, update or _SAMPLES, split)
    yield _contender(brief, _ALONE, 1, ranks, update or _SAMPLES, ["algorithm=bp", "train.microbatches=1"])


def _contender(brief: Brief, name: str, ranks: int, blocks: int, batch: int, system: Sequence[str]) -> Contender:
    layers = _LAYERS * blocks
    options = [
        "model=cnn",
        f"model.channels={[_CHANNELS] * layers}",
        f"model.strides={[1] * layers}",
        f"model.cut={[_LAYERS] * (blocks - 1) + [_LAYERS + 1]}",
        f"blocks={blocks}",
        *system,
    ]
    if torch.cuda.device_count() >= ranks:  # pipelines of torch want a device for each
        options.append("device=cuda")
    batches = 2 * ranks + 2 if name == _BLL else 2
    return awake(brief.conf, brief.folder, name, ranks, batches, 1, batch, options)


def _row(brief: Brief, contender: Contender, comparison: str, blocks: int) -> StepMetrics:
    brief.log(f"{comparison}: P={blocks}: {contender.name}")
    ranks = run(Setting(timeout=300), contender.ranks, account, contender)
    cuda = [held.reading.peak_cuda_bytes for held in ranks]
    return StepMetrics(
        name=contender.name,
        ranks=contender.ranks,
        peak_rss_bytes=max(held.reading.peak_rss_bytes for held in ranks),
        peak_cuda_bytes=max((value for value in cuda if value is not None), default=None),
        batch=contender.config.train.batch_size,
        microbatches=contender.microbatches,
        more={
            "comparison": comparison,
            "blocks": blocks,
            "saved_mb": ranks[0].saved / 1e6,
            "saved_mb_of_each": " ".join(f"{held.saved / 1e6:.2f}" for held in ranks),
            "messages_mb": ranks[0].messages / 1e6,
            "messages_mb_of_the_most": max(held.messages for held in ranks) / 1e6,
            "all_mb": ranks[0].all / 1e6,
            "all_mb_of_the_most": max(held.all for held in ranks) / 1e6,
        },
    )


def _beside(row: StepMetrics, bll: StepMetrics) -> StepMetrics:
    """With how many times more than BLL's the bottom stage holds."""
    return row.having(
        saved_over_bll=_number(row, "saved_mb") / _number(bll, "saved_mb"),
        all_over_bll=_number(row, "all_mb") / _number(bll, "all_mb"),
    )


def _number(row: StepMetrics, key: str) -> float:
    value = row.more[key]
    assert isinstance(value, int | float)
    return value


def _goals(found: Sequence[StepMetrics]) -> Iterator[Goal]:
    equal = [row for row in found if row.more["comparison"] == _BY_MESSAGE]
    bottom = [_number(row, "saved_mb") for row in equal if row.name == _BLL]
    if len(bottom) > 1:
        text = "equal message: most over least of stage 0 of BLL, whatever P, less 1"
        yield Goal(text, _FLAT, max(bottom) / min(bottom) - 1, at_most=True)
    for row in equal:
        if row.ranks == _AT and row.name.startswith("1F1B"):
            yield Goal(
                f"equal message: P={_AT}: stage 0 of {row.name} over BLL's", _BELOW, _number(row, "saved_over_bll")
            )


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """What autograd keeps for the bottom stage, a panel for each comparison."""

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        for ax, comparison in zip(axes, (_BY_MESSAGE, _BY_UPDATE), strict=True):
            _panel(ax, [row for row in note["rows"] if row["comparison"] == comparison])
            ax.set_title(comparison)
            ax.set_xlabel("blocks, and ranks")
        axes[0].set_ylabel("kept by stage 0 at its peak [MB]")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)

    figures.save(folder / "memory.png", 1, 2, 4.2, paint)


def _panel(ax: Axes, rows: figures.RowAssembler) -> None:
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        curves.setdefault(_label(row), []).append(row)
    for label, points in curves.items():
        marker, size = _MARKERS[label.split(",")[0].split(" ")[0]]
        ax.plot(
            [point["blocks"] for point in points],
            [point["saved_mb"] for point in points],
            color=figures.colour(label.replace(",", "")),
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
    """The same for all P."""
    name, _, microbatches = str(row["name"]).partition(" m=")
    return f"{name}, m = {int(microbatches) / row['ranks']:g}P".replace("1P", "P") if microbatches else name
