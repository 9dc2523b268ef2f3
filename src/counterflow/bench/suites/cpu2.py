"""Two ranks of one thread each, and a network whose two halves are balanced: what a pipeline really gains.

Nothing is emulated. All contenders train the same network on the same update batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender, replicate
from counterflow.bench.crew import Setting
from counterflow.bench.entrants import awake, convolutions, noise, title
from counterflow.bench.race import Measured, race, ratio, rows
from counterflow.bench.row import Goal, Result

_BATCH = 128
_PIXELS = 16
_CONVOLUTIONS = 9
"""The first one, of three channels, is a sixteenth of another; so both halves have four, and are equal for backprop."""
_WARM = 4
_TIMED = 16
_LIMIT = 120.0
"""Seconds of one measurement."""
_LOCAL = {
    "BLL": ["algorithm=bll", "algorithm.latent.convolutions=0"],
    "BLL, latent heads of 3 convolutions": ["algorithm=bll", "algorithm.latent.convolutions=3"],
    "AL": ["algorithm=al"],
    "Pred-Sim": ["algorithm=predsim"],
}
_GOALS = {title("1f1b", 4): 1.25, title("gpipe", 4): 1.35, title("1f1b", 8): 1.08}
_BASELINE = title("1f1b", 4)


def measure(brief: Brief) -> Result:
    options = brief.options
    default = [4, 8] if options.quick else [2, 4, 8, 16]
    microbatches = options.numbers("microbatches", default)
    noise(brief.folder, 4 * _BATCH, _PIXELS, channels=3)
    contenders = list(_contenders(brief, microbatches))
    names = [contender.name for contender in contenders]
    baseline = _BASELINE if _BASELINE in names else names[-1]
    measured = race(contenders, options.rounds, lambda _: Setting(timeout=_LIMIT, pinned=True), brief.log)
    settings = {
        "network": f"{_CONVOLUTIONS} convolutions of 48 channels, batch norm, an output layer",
        "samples": f"{_BATCH} of {_PIXELS} x {_PIXELS} pixels",
        "threads": 1,
        "batches": _TIMED,
        "rounds": options.rounds,
        "cut": _cut(measured["BLL"]),
    }
    return Result("cpu2", settings, rows(contenders, measured, baseline), list(_goals(measured)))


def _contenders(brief: Brief, microbatches: Sequence[int]) -> Iterator[Contender]:
    def entrant(name: str, ranks: int, *options: str) -> Contender:
        wanted = [f"blocks={ranks}", *convolutions(_CONVOLUTIONS), *options]
        return awake(brief.conf, brief.folder, name, ranks, _WARM + _TIMED, _WARM, _BATCH, wanted)

    for name, options in _LOCAL.items():
        yield entrant(name, 2, *options, "model.cut=profile")
    for m in microbatches:
        for schedule in ("gpipe", "1f1b"):
            wanted = ("algorithm=bp", f"schedule={schedule}", f"train.microbatches={m}", "model.cut=profile")
            yield entrant(title(schedule, m), 2, *wanted)
    split = ("algorithm=bp", "schedule=gpipe", "train.microbatches=1", "model.cut=profile")
    yield entrant("split over two ranks", 2, *split)
    yield entrant("one process", 1, "algorithm=bp")
    yield replace(entrant("DDP", 1, "algorithm=bp"), ranks=2, task=replicate, microbatches=None)


def _cut(measured: Sequence[Measured]) -> str:
    return "; ".join(sorted({str(list(one.readings[0].cut)) for one in measured}))


def _goals(measured: Mapping[str, Sequence[Measured]]) -> Iterator[Goal]:
    for name, wanted in _GOALS.items():
        if name in measured:
            yield Goal(f"BLL over {name}", wanted, ratio(measured["BLL"], measured[name]))


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """Samples per second, and ratios to the baseline."""

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        figures.bars(axes[0], note["rows"])
        axes[0].set_xlabel("samples/s")
        axes[0].set_title(f"Two ranks of one thread, batch {_BATCH}; ratios to {_BASELINE}")

    figures.save(folder / "cpu2.png", 1, 1, 0.32 * len(note["rows"]) + 1, paint)
