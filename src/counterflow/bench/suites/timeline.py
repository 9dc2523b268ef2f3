"""What every rank did when: the measured counterpart of Figure 2 (right) of the BLL paper, beside GPipe and 1F1B.

Two pictures. ``timeline.png`` is of a network that really trains, which needs a core for every rank to look like what
it is; in ``timeline_emulated.png`` blocks sleep, so that few cores do.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender, trace
from counterflow.bench.crew import Setting, run
from counterflow.bench.entrants import asleep, awake, common_batch, convolutions, noise, title
from counterflow.bench.race import Measured, rows
from counterflow.bench.row import Result
from counterflow.bench.sleeping import Sleep
from counterflow.trace.timeline import Panel
from counterflow.trace.timeline import draw as paint

_BATCHES = 24
_SHOWN = 8
_BATCH = 128
_CONVOLUTIONS = 8
_LIMIT = 120.0


def measure(brief: Brief) -> Result:
    options = brief.options
    ranks = options.numbers("ranks", [4])[0]
    microbatches = options.numbers("microbatches", [2 * ranks])[0]
    forward, backward, update = options.stage.seconds(20.0, 40.0, 2.0)
    sleep = Sleep(forward, backward, update, common_batch([microbatches]), width=32)
    noise(brief.folder, 4 * _BATCH, pixels=16, channels=3)
    schedules = ("free", "1f1b", "gpipe")
    sleeping = [asleep(brief.conf, brief.folder, s, sleep, ranks, _BATCHES, microbatches) for s in schedules]
    training = [_awake(brief, schedule, ranks, microbatches) for schedule in schedules]
    found = []
    for suffix, contenders in (("", training), ("_emulated", sleeping)):
        measured, panels = {}, []
        for contender in contenders:
            brief.log(contender.name)
            readings = run(Setting(_LIMIT), ranks, trace, replace(contender, warm=2))
            measured[contender.name] = [
                Measured([reading for reading, _ in readings], contender.config.train.batch_size)
            ]
            panels.append(Panel(contender.name, [track for _, track in readings]))
        paint(panels, brief.out / f"timeline{suffix}.png", range(_SHOWN))
        found += [
            replace(row, name=f"{row.name} (emulated)", baseline=f"{row.baseline} (emulated)") if suffix else row
            for row in rows(contenders, measured, title("1f1b", microbatches))
        ]
    settings = {"network": f"{_CONVOLUTIONS} convolutions of 48 channels, {_SHOWN} of {_BATCHES} batches shown"} | {
        f"sleeping_{key}": value for key, value in sleep.note.items() if key != "emulated"
    }
    return Result("timeline", settings, found, [])


def _awake(brief: Brief, schedule: str, ranks: int, microbatches: int) -> Contender:
    wanted = [f"blocks={ranks}", *convolutions(_CONVOLUTIONS), "model.cut=flops"]
    if schedule == "free":
        name, wanted = "BLL", [*wanted, "algorithm=bll"]
    else:
        name = title(schedule, microbatches)
        wanted = [*wanted, "algorithm=bp", f"schedule={schedule}", f"train.microbatches={microbatches}"]
    return awake(brief.conf, brief.folder, name, ranks, _BATCHES, 2, _BATCH, wanted)


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """The pictures are of spans that no note holds: `measure` has drawn them."""
