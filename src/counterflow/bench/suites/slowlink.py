"""Every edge between ranks limited: 1 Gb/s and 10 ms one way, and what a lag hides of that.

EMULATED: blocks sleep, and the link is a router in user space between network namespaces (`counterflow.bench.network`);
TCP, gloo and everything above are real. The fast link is this machine's loopback.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.contender import Contender
from counterflow.bench.crew import Setting
from counterflow.bench.entrants import asleep, common_batch, noise, title
from counterflow.bench.network import LinkSpeed, Network, available
from counterflow.bench.prediction import all_beside, predict
from counterflow.bench.race import race, ratio, rows
from counterflow.bench.row import Goal, Result
from counterflow.bench.sleeping import Sleep
from counterflow.schedule.load import Link

_BATCHES = 60
_BATCHES_IN_STEP = 14
_LONGEST_LAG = 16
_NO_GAIN = 0.01
_LOSS = 0.98
_OVER_1F1B = 1.5
_SLOW, _FAST = "slow link", "fast link"


def measure(brief: Brief) -> Result:
    reason = available()
    if reason is not None:
        raise ValueError(f"suite=slowlink: this machine allows no network namespaces with tunnels ({reason})")
    options = brief.options
    ranks = options.numbers("ranks", [4])[0]
    microbatches = options.numbers("microbatches", [ranks, 2 * ranks])
    speed = LinkSpeed(options.link.bandwidth_gbps * 1e9 / 8, options.link.latency_ms / 1e3)
    link = Link(speed.latency, speed.bandwidth)
    batch = common_batch(microbatches)
    forward, backward, update = options.stage.seconds(5.0, 10.0)
    sleep = Sleep(forward, backward, update, batch, width=options.link.activation_kb * 1024 // 4 // batch)
    noise(brief.folder, 512, pixels=4, channels=1)

    def free(lag: int, where: str) -> Contender:
        wanted, name = [f"engine.lag={lag}"], f"BLL lag {lag}, {where}"
        return asleep(brief.conf, brief.folder, "free", sleep, ranks, _BATCHES, options=wanted, name=name)

    lag = planned_lag(lambda lag: free(lag, _SLOW), link)
    contenders = [free(each, where) for each in sorted({2, lag}) for where in (_SLOW, _FAST)]
    for m in microbatches:
        for where in (_SLOW, _FAST):
            name = f"{title('1f1b', m)}, {where}"
            contenders.append(asleep(brief.conf, brief.folder, "1f1b", sleep, ranks, _BATCHES_IN_STEP, m, name=name))
    with Network(ranks, speed) as network:

        def setting(contender: Contender) -> Setting:
            seconds = 90 + 10 * _BATCHES * (sleep.total + speed.latency)
            return Setting(seconds, door=network.door if contender.name.endswith(_SLOW) else None)

        measured = race(contenders, options.rounds, setting, brief.log)
    pipelines = [c.name for c in contenders if c.name.startswith("1F1B") and c.name.endswith(_SLOW)]
    baseline = max(pipelines, key=lambda name: ratio(measured[name], measured[pipelines[0]]))
    found = rows(contenders, measured, baseline)
    calibrations = [f"BLL lag 2, {_FAST}", f"{title('1f1b', microbatches[0])}, {_FAST}"]
    found = all_beside(found, contenders, calibrations, lambda c: link if c.name.endswith(_SLOW) else None)
    settings = sleep.note | {
        "link": "a router in user space; TCP and gloo over it are real",
        "bandwidth_gbps": options.link.bandwidth_gbps,
        "latency_ms": options.link.latency_ms,
        "activation_kb": options.link.activation_kb,
        "planned_lag": lag,
        "rounds": options.rounds,
    }
    best, fast = measured[f"BLL lag {lag}, {_SLOW}"], measured[f"BLL lag {lag}, {_FAST}"]
    goals = [
        Goal(f"BLL lag {lag}, slow over fast link", _LOSS, ratio(best, fast)),
        Goal(f"BLL lag {lag} over {baseline}", _OVER_1F1B, ratio(best, measured[baseline])),
    ]
    return Result("slowlink", settings, found, goals)


def planned_lag(contender_of: Callable[[int], Contender], link: Link) -> int:
    """The smallest lag after which, as predicted, a longer one gains nothing."""
    seconds = {lag: predict(contender_of(lag), link).seconds_per_batch for lag in range(2, _LONGEST_LAG + 1)}
    best = min(seconds.values())
    return next(lag for lag, found in seconds.items() if found <= best * (1 + _NO_GAIN))


def draw(note: Mapping[str, Any], folder: Path) -> None:
    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        settings = note["settings"]
        figures.bars(axes[0], note["rows"])
        axes[0].set_xlabel("samples/s")
        text = f"Links of {settings['bandwidth_gbps']:g} Gb/s and {settings['latency_ms']:g} ms, activations of "
        axes[0].set_title(figures.title(note, f"{text}{settings['activation_kb']} KB"))

    figures.save(folder / "slowlink.png", 1, 1, 0.35 * len(note["rows"]) + 1, paint)
