"""Weak scaling: as many ranks as blocks, each with the same work. EMULATED: blocks sleep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.crew import Setting
from counterflow.bench.entrants import asleep, common_batch, noise, title
from counterflow.bench.prediction import beside
from counterflow.bench.race import race, rows
from counterflow.bench.row import Result, StepMetrics
from counterflow.bench.sleeping import Sleep

_BATCHES = 24
_BATCHES_IN_STEP = 8
_WIDTH = 32


def measure(brief: Brief) -> Result:
    options = brief.options
    forward, backward, update = options.stage.seconds(100.0, 200.0)
    sleep = Sleep(forward, backward, update, batch=1, width=_WIDTH)
    noise(brief.folder, 512, pixels=4, channels=1)
    found = [row for ranks in options.numbers("ranks", [1, 2, 4, 8, 16]) for row in _of(ranks, sleep, brief)]
    return Result("scaling", sleep.note | {"rounds": options.rounds}, found, [])


def _of(ranks: int, each: Sleep, brief: Brief) -> Iterator[StepMetrics]:
    microbatches = brief.options.numbers("microbatches", [2 * ranks])
    sleep = replace(each, batch=common_batch(microbatches))
    contenders = [asleep(brief.conf, brief.folder, "free", sleep, ranks, _BATCHES)]
    if ranks > 1:
        contenders += [
            asleep(brief.conf, brief.folder, "1f1b", sleep, ranks, _BATCHES_IN_STEP, m) for m in microbatches
        ]
    setting = Setting(timeout=60 + 100 * sleep.total)
    measured = race(contenders, brief.options.rounds, lambda _: setting, lambda text: brief.log(f"P={ranks}: {text}"))
    baseline = title("1f1b", microbatches[-1]) if ranks > 1 else "BLL"
    for row, contender in zip(rows(contenders, measured, baseline), contenders, strict=True):
        yield beside(row, contender)


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """The share of a rank's ideal rate that is left, over the number of ranks."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in note["rows"]:
        curves.setdefault(row["name"].split(" m=")[0], []).append((row["ranks"], 100 * row["share_of_ideal"]))

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        for name, points in curves.items():
            label = f"{name}, m = 2P" if name == "1F1B" else name
            axes[0].plot(*zip(*points, strict=True), color=figures.colour(name), marker="o", label=label)
        axes[0].set_xscale("log", base=2)
        ranks = [rank for rank, _ in curves["BLL"]]
        axes[0].set_xticks(ranks, [str(rank) for rank in ranks])
        axes[0].set_ylim(0, 105)
        axes[0].set_xlabel("ranks, and blocks")
        axes[0].set_ylabel("share of the ideal rate [%]")
        axes[0].legend()
        axes[0].set_title(figures.title(note, "Weak scaling"))

    figures.save(folder / "scaling.png", 1, 1, 3.6, paint)
