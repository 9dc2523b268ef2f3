"""One block in eight, drawn anew, takes three times as long in a tenth of all batches: what queues are for.

EMULATED: blocks sleep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender
from counterflow.bench.crew import Setting
from counterflow.bench.entrants import asleep, common_batch, noise, title
from counterflow.bench.prediction import all_beside
from counterflow.bench.race import race, ratio, rows
from counterflow.bench.row import Goal, Result
from counterflow.bench.sleeping import Jitter, Sleep

_SHARE, _FACTOR = 0.1, 3.0
_DEPTHS = (1, 2, 4, 8)
_BATCHES = 60
_BATCHES_IN_STEP = 32
_STEADY_BATCHES_IN_STEP = 6
_STEADY = ", nothing slow"
_WIDTH = 32
_OVER_1F1B = 1.25


def measure(brief: Brief) -> Result:
    options = brief.options
    (ranks,) = options.numbers("ranks", [8])[:1]
    microbatches = options.numbers("microbatches", [3 * ranks])
    forward, backward, update = options.stage.seconds(60.0, 120.0)
    sleep = Sleep(forward, backward, update, common_batch(microbatches), _WIDTH, Jitter(_SHARE, _FACTOR, ranks))
    noise(brief.folder, 512, pixels=4, channels=1)
    contenders = list(_contenders(brief, sleep, ranks, microbatches))
    baseline = title("1f1b", microbatches[0])
    setting = Setting(timeout=60 + 3 * _BATCHES * sleep.total)
    measured = race(contenders, options.rounds, lambda _: setting, brief.log)
    found = rows(contenders, measured, baseline)
    found = all_beside(found, contenders, ["BLL" + _STEADY, baseline + _STEADY])
    settings = sleep.note | {"share_of_slow_batches": _SHARE, "factor": _FACTOR, "rounds": options.rounds}
    goal = Goal("BLL depth 4 over " + baseline, _OVER_1F1B, ratio(measured[_name(4)], measured[baseline]))
    return Result("jitter", settings, found, [goal])


def _name(depth: int) -> str:
    return f"BLL depth {depth}"


def _contenders(brief: Brief, sleep: Sleep, ranks: int, microbatches: Sequence[int]) -> Iterator[Contender]:
    for depth in _DEPTHS:
        wanted = [f"engine.depth={depth}", f"engine.lag={max(2, depth)}"]
        yield asleep(brief.conf, brief.folder, "free", sleep, ranks, _BATCHES, options=wanted, name=_name(depth))
    steady = replace(sleep, jitter=None)
    yield asleep(brief.conf, brief.folder, "free", steady, ranks, _BATCHES, name="BLL" + _STEADY)
    for m in microbatches:
        yield asleep(brief.conf, brief.folder, "1f1b", sleep, ranks, _BATCHES_IN_STEP, m)
        name = title("1f1b", m) + _STEADY
        yield asleep(brief.conf, brief.folder, "1f1b", steady, ranks, _STEADY_BATCHES_IN_STEP, m, name=name)


def draw(note: Mapping[str, Any], folder: Path) -> None:
    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        figures.bars(axes[0], note["rows"])
        axes[0].set_xlabel("samples/s")
        axes[0].set_title(figures.title(note, "One block takes 3x as long in 10 % of batches"))

    figures.save(folder / "jitter.png", 1, 1, 0.35 * len(note["rows"]) + 1, paint)
