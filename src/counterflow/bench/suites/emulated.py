"""Blocks that sleep, on as many ranks as wanted, whatever the cores: the schedules and the engine alone.

EMULATED: no arithmetic is done. A rank takes the same time for an update batch under every schedule.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from counterflow.bench import figures
from counterflow.bench.brief import Brief
from counterflow.bench.crew import Setting
from counterflow.bench.entrants import asleep, common_batch, noise, pipelines, title
from counterflow.bench.options import BenchOptions
from counterflow.bench.prediction import all_beside
from counterflow.bench.race import race, rows
from counterflow.bench.row import Goal, Result, StepMetrics
from counterflow.bench.sleeping import Sleep

_TIMED = 12
"""Update batches that are timed of BLL, after half as many for the fill; pipelines, which fill and drain with each
batch, need fewer."""
_TIMED_IN_STEP = 3
_WIDTH = 32
_MANY = 8
_OF_IDEAL = {8: 0.95, 32: 0.93}
_OVER_1F1B = {8: 1.20}


def measure(brief: Brief) -> Result:
    options = brief.options
    noise(brief.folder, 512, pixels=4, channels=1)
    found: list[StepMetrics] = []
    settings: dict[str, Any] = {"rounds": options.rounds}
    for ranks in options.numbers("ranks", [2, 4, 8, 16, 32]):
        sleep, microbatches = _sleep(ranks, options)
        settings |= {f"{key}, P={ranks}" if key != "emulated" else key: value for key, value in sleep.note.items()}
        found += _of(ranks, sleep, microbatches, brief)
    return Result("emulated", settings, found, list(_goals(found)))


def _sleep(ranks: int, options: BenchOptions) -> tuple[Sleep, list[int]]:
    """What blocks take, and the numbers of micro-batches.

    Torch's schedules take about a millisecond of a core for a micro-batch of a rank, so blocks have to sleep long for
    the schedules to be what is measured, on few cores. From 16 ranks on that would be minutes for a batch: there is one
    number of micro-batches, and less time.
    """
    many = ranks > _MANY
    default = [ranks] if many else [ranks, 3 * ranks] if options.quick else [ranks, 2 * ranks, 3 * ranks, 4 * ranks]
    microbatches = options.numbers("microbatches", default)
    total_ms = 300.0 if options.quick else 1000.0 if many else max(300.0, 10.0 * ranks * max(microbatches))
    forward, backward, update = options.stage.seconds(total_ms / 3, 2 * total_ms / 3)
    return Sleep(forward, backward, update, common_batch(microbatches), _WIDTH), microbatches


def _of(ranks: int, sleep: Sleep, microbatches: Sequence[int], brief: Brief) -> list[StepMetrics]:
    options = brief.options
    contenders = [asleep(brief.conf, brief.folder, "free", sleep, ranks, _TIMED * 3 // 2)] + [
        asleep(brief.conf, brief.folder, schedule, sleep, ranks, 1 + _TIMED_IN_STEP, m)
        for m in microbatches
        for schedule in pipelines(ranks, m)
        if not options.quick or schedule in ("gpipe", "1f1b")
    ]
    names = [contender.name for contender in contenders]
    baseline = next((n for n in (title("1f1b", 3 * ranks), title("1f1b", ranks)) if n in names), names[-1])
    setting = Setting(timeout=60 + 50 * sleep.total)
    measured = race(contenders, options.rounds, lambda _: setting, lambda text: brief.log(f"P={ranks}: {text}"))
    found = rows(contenders, measured, baseline)
    return all_beside(found, contenders, [title("1f1b", microbatches[0])])


def _goals(found: Sequence[StepMetrics]) -> Iterator[Goal]:
    for row in found:
        share = row.more["share_of_ideal"]
        if row.name == "BLL" and row.ranks in _OF_IDEAL:
            assert isinstance(share, float)
            yield Goal(f"P={row.ranks}: share of the ideal rate", _OF_IDEAL[row.ranks], share)
        if row.name == "BLL" and row.ranks in _OVER_1F1B and row.baseline == title("1f1b", 3 * row.ranks):
            assert row.ratio_to_baseline is not None
            yield Goal(f"P={row.ranks}: over {row.baseline}", _OVER_1F1B[row.ranks], row.ratio_to_baseline)


def draw(note: Mapping[str, Any], folder: Path) -> None:
    """A panel for each number of ranks: the share of the ideal rate over micro-batches, and what was predicted."""
    panels = {ranks: [row for row in note["rows"] if row["ranks"] == ranks] for ranks in _ranks(note)}
    columns = min(3, len(panels))

    def paint(figure: Figure, axes: Sequence[Axes]) -> None:
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, (ranks, points) in zip(axes, panels.items(), strict=False):
            _panel(ax, points)
            ax.set_title(f"{ranks} ranks")
            ax.set_xlabel("micro-batches")
        axes[0].set_ylabel("share of the ideal rate [%]")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3)
        figure.suptitle(figures.title(note, "Blocks that sleep; crosses are predictions"))

    figures.save(folder / "emulated.png", -(-len(panels) // columns), columns, 3.4, paint)


def _ranks(note: Mapping[str, Any]) -> list[int]:
    return sorted({row["ranks"] for row in note["rows"]})


def _panel(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        curves.setdefault(row["name"].split(" m=")[0], []).append(row)
    ticks = sorted({row["microbatches"] for row in rows if row["microbatches"]})
    for name, points in curves.items():
        # What knows no micro-batches is a level over all of them.
        x = [point["microbatches"] for point in points] if points[0]["microbatches"] else ticks
        points = points if points[0]["microbatches"] else points * len(ticks)
        share = [100 * point["share_of_ideal"] for point in points]
        predicted = [
            s * point["predicted_samples_per_second"] / point["samples_per_second"]
            for s, point in zip(share, points, strict=True)
        ]
        ax.plot(x, share, color=figures.colour(name), marker="o", markersize=4, label=name)
        ax.plot(x, predicted, color=figures.colour(name), marker="x", linestyle="none")
    ax.set_xticks(ticks)
    ax.set_ylim(0, 105)
