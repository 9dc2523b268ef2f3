"""Suite ``time_to_accuracy``: methods train the same network to a target on held-out data, on the same cores.

Each is as long as it needs: of growing lengths, the first whose end, with its learning rate decayed, passes the target
in the mean of all seeds. Then the fastest go over a slow link, whose timing changes no bit of what they learn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from counterflow.bench.case import BenchmarkCase, train, train_ddp
from counterflow.bench.charts import chart, colour
from counterflow.bench.netem import LinkSpeed, emulated_network, unavailable_reason
from counterflow.bench.options import BenchContext
from counterflow.bench.results import CaseResult, Goal, SuiteResult
from counterflow.bench.whole_run import WholeRun, last_figure, train_whole, train_whole_ddp
from counterflow.bench.workers import WorkerError, WorkerSettings, run_workers
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig

_TIMEOUT = 3600.0
"""Seconds of one run."""
_LINK = LinkSpeed(bandwidth=100e6 / 8, latency=0.05)
_FINALISTS = 4
"""Methods that go over the slow link, beside the fastest pipeline."""
_LINK_BATCHES, _LINK_WARMUP = 36, 12
"""Batches of a run over the slow link, and the first of these, which are not timed."""
_SLOW = ", slow link"


@dataclass(frozen=True)
class _Method:
    name: str
    options: tuple[str, ...]
    ranks: int = 2
    ddp: bool = False
    locks: bool = False
    """Blocks wait for a global backward pass."""


@dataclass(frozen=True)
class _Race:
    options: tuple[str, ...]
    figure: str
    """Metric on held-out data."""
    length: str
    """The option that says how long a run is."""
    lengths: tuple[int, ...]
    """In the order in which they are tried."""
    far: float
    """A first seed that misses the target by more ends the tries of this length."""
    methods: tuple[_Method, ...]
    grows: bool
    """The figure is the better, the greater it is."""

    def passes(self, value: float, target: float) -> bool:
        return value >= target if self.grows else value <= target


_CORRECTED = ("optimizer.delay_corrected=true", "optimizer.betas=[0.99,0.999]")
"""AdamW with AsyncPP's correction of late gradients, and its momentum."""


def _backprop(blocks: str, *corrected: str) -> tuple[_Method, ...]:
    """Backprop on pipelines, with locks and without, and on no pipeline; ``corrected``: options for late gradients."""
    late = ("algorithm=bp", blocks, "engine.lag=1", "optimizer.clip=0")
    return (
        *(
            _Method(f"1F1B m={m}", ("algorithm=bp", blocks, "schedule=1f1b", f"train.microbatches={m}"), locks=True)
            for m in (4, 8)
        ),
        _Method("naive", (*late, "schedule=naive")),
        _Method("PipeDream", (*late, "schedule=pipedream")),
        *([_Method("PipeDream, corrected", (*late, "schedule=pipedream", *corrected))] if corrected else []),
        _Method("DDP", ("algorithm=bp", "blocks=1"), ddp=True, locks=True),
        _Method("one process", ("algorithm=bp", "blocks=1", "engine.threads=2"), ranks=1, locks=True),
    )


_RACES = {
    "cifar10": _Race(
        options=("experiment=cifar10_tuning", "scale=cpu", "train.batch_size=240"),  # which 8 micro-batches divide
        figure="accuracy",
        length="train.epochs",
        lengths=(2, 3, 4, 5, 6, 8, 10),
        far=0.01,
        methods=(
            _Method("BLL", ("algorithm=bll", "blocks=2")),
            _Method("BLL, int8 wire", ("algorithm=bll", "blocks=2", "engine.wire=int8")),
            _Method("local cross entropy", ("algorithm=predsim", "algorithm.beta=0", "blocks=2")),
            _Method("Pred-Sim", ("algorithm=predsim", "blocks=2")),
            *_backprop("blocks=2"),
        ),
        grows=True,
    ),
    "text": _Race(
        options=("experiment=lm", "scale=cpu", "train.evaluate_every=0"),
        figure="bits_per_byte",
        length="train.steps",
        lengths=(300, 400, 500, 600, 800, 1000),
        far=0.05,
        methods=(
            _Method("BLL", ("algorithm=bll", "algorithm.head.layers=1", "blocks=2")),
            _Method(
                "local cross entropy",
                ("algorithm=predsim", "algorithm.beta=0", "algorithm.head.layers=1", "blocks=2"),
            ),
            *_backprop("blocks=2", *_CORRECTED),
        ),
        grows=False,
    ),
}


def measure_time_to_accuracy(context: BenchContext) -> SuiteResult:
    """All methods of ``task.name``, and then the fastest of them over a link of 100 Mb/s and 50 ms.

    Finished runs are kept in ``out``, and a suite that was interrupted goes on from them.

    Raises:
        ValueError: ``task.root`` is missing, or names no data.
    """
    options = context.options.task
    race = _RACES[options.name]
    options.of_data()
    runs = _RaceRuns(context, race, context.out / f"race-{options.name}.jsonl")
    target = options.target
    results = [runs.result(method, target) for method in race.methods]
    if unavailable_reason() is None:
        results += runs.over_slow_link(_finalists(results))
    return SuiteResult(
        "time_to_accuracy",
        settings={
            "task": options.name,
            "target": f"{race.figure} {target:g}",
            "lengths": f"{race.length}={','.join(map(str, race.lengths))}",
            "seeds": context.options.rounds,
            "slow_link": "EMULATED: 100 Mb/s and 50 ms each way, a router in user space; a run's time is its batches "
            "over the rate measured there",
        },
        cases=results,
        goals=list(_goals(race, results)),
    )


class _RaceRuns:
    """Runs of the methods of one race, those of earlier calls too."""

    def __init__(self, context: BenchContext, race: _Race, path: Path) -> None:
        self._context, self._race, self._path = context, race, path
        lines = path.read_text().splitlines() if path.exists() else []
        self._runs: dict[str, Any] = {row["key"]: row["run"] for row in map(json.loads, lines)}

    def config(self, method: _Method, length: int, seed: int) -> TrainConfig:
        return load_config(
            [
                *self._race.options,
                *self._context.options.task.of_data(),
                "engine.threads=1",
                "device=cpu",
                f"{self._race.length}={length}",
                f"seed={seed}",
                *method.options,
            ]
        )

    def result(self, method: _Method, target: float) -> CaseResult:
        """The row of ``method`` at the first length that passes ``target``, or in doubt at the last."""
        race, tried = self._race, 0
        runs: list[Mapping[str, Any]] = []
        figures: list[float] = []
        for length in race.lengths:
            runs, figures = [], []
            for seed in range(1, self._context.options.rounds + 1):
                run = self._run(method, length, seed)
                tried += 1
                if run is None:
                    return CaseResult(name=method.name, ranks=method.ranks, doubt="its loss was not finite")
                runs.append(run)
                figures.append(float(run["figure"]))
                if abs(figures[0] - target) > race.far and not race.passes(figures[0], target):
                    break
            else:
                if race.passes(mean(figures), target):
                    return self._row(method, length, runs, figures, tried, "")
        doubt = f"{race.figure} {mean(figures):.4g} after {race.length}={race.lengths[-1]}"
        return self._row(method, race.lengths[-1], runs, figures, tried, doubt)

    def over_slow_link(self, finalists: Sequence[CaseResult]) -> Iterator[CaseResult]:
        """Rows of ``finalists`` over the slow link: their rate there, and the time of their run at this rate."""
        by_name = {method.name: method for method in self._race.methods}
        with emulated_network(2, _LINK) as network:
            for fast in finalists:
                method = by_name[fast.name]
                if method.ranks == 1:
                    continue
                self._context.log(f"{method.name}{_SLOW}")
                config = self.config(method, int(fast.extra["length"]), 1)
                case = BenchmarkCase(
                    name=method.name + _SLOW,
                    ranks=2,
                    config=config,
                    batches=_LINK_BATCHES,
                    warmup=_LINK_WARMUP,
                    task=train_ddp if method.ddp else train,
                )
                ranks = run_workers(WorkerSettings(_TIMEOUT, network=network), 2, case.task, case)
                rate = min(case.config.train.batch_size * rank.batches / rank.seconds for rank in ranks)
                yield replace(fast, name=case.name, samples_per_second=rate).with_extra(
                    seconds=fast.extra["samples"] / rate, seconds_lowest=None, seconds_highest=None
                )

    def _run(self, method: _Method, length: int, seed: int) -> dict[str, Any] | None:
        """Summary of a run, kept or measured now; None if its loss was not finite."""
        config = self.config(method, length, seed)
        key = sha256(repr((method.name, method.ranks, config)).encode()).hexdigest()
        if key not in self._runs:
            self._context.log(f"{method.name}, {self._race.length}={length}, seed={seed}")
            task = train_whole_ddp if method.ddp else train_whole
            try:
                ranks = run_workers(WorkerSettings(_TIMEOUT), method.ranks, task, config)
                run: dict[str, Any] | None = _summary(ranks, self._race.figure)
            except WorkerError as error:
                if "FloatingPointError" not in str(error):
                    raise
                run = None
            self._runs[key] = run
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                named = {"method": method.name, "length": length, "seed": seed}
                file.write(json.dumps({"key": key, **named, "run": run}) + "\n")
        found: dict[str, Any] | None = self._runs[key]
        return found

    def _row(
        self,
        method: _Method,
        length: int,
        runs: Sequence[Mapping[str, Any]],
        figures: Sequence[float],
        tried: int,
        doubt: str,
    ) -> CaseResult:
        seconds = [float(run["seconds"]) for run in runs]
        samples = runs[0]["samples"]
        return CaseResult(
            name=method.name,
            ranks=method.ranks,
            samples_per_second=samples / median(seconds),
            peak_rss_bytes=max(run["peak_rss_bytes"] for run in runs),
            repeats=len(runs),
            doubt=doubt,
            extra={
                "seconds": median(seconds),
                "seconds_lowest": min(seconds),
                "seconds_highest": max(seconds),
                "length": float(length),
                "figure": mean(figures),
                "figure_deviation": stdev(figures) if len(figures) > 1 else None,
                "samples": float(samples),
                "teraflop": samples * runs[0]["flops"] / 1e12,
                "sent_gigabytes": runs[0]["sent_bytes"] / 1e9,
                "processors": median(run["processor_seconds"] / run["seconds"] for run in runs),
                "runs_tried": float(tried),
                "locks": "yes" if method.locks else "no",
            },
        )


def _finalists(results: Sequence[CaseResult]) -> Sequence[CaseResult]:
    """The fastest that reached the target, and the fastest pipeline if it is not among them."""
    ordered = sorted((row for row in results if not row.doubt), key=lambda row: float(row.extra["seconds"]))
    pipelines = [row for row in ordered if _is_pipeline(row)]
    return ordered[:_FINALISTS] + [row for row in pipelines[:1] if row not in ordered[:_FINALISTS]]


def _is_pipeline(row: CaseResult) -> bool:
    return row.name.startswith("1F1B")


def _summary(ranks: Sequence[WholeRun], figure: str) -> dict[str, Any]:
    """One run from what its ranks saw."""
    value = last_figure(ranks, figure)
    first, seconds = asdict(ranks[0]), max(rank.seconds for rank in ranks)
    return {
        "seconds": seconds,
        "figure": value,
        "processor_seconds": sum(rank.processor_seconds for rank in ranks),
        "peak_rss_bytes": max(rank.peak_rss_bytes for rank in ranks),
        "samples": first["batches"] * first["batch"],
        "flops": sum(rank.flops for rank in ranks),
        "sent_bytes": first["batches"] * sum(rank.sent_bytes for rank in ranks),
    }


def _goals(race: _Race, results: Sequence[CaseResult]) -> Iterator[Goal]:
    """A locking-free method is there no later than the best pipeline, and in half of its time over the slow link."""
    for suffix, wanted in (("", 1.0), (_SLOW, 2.0)):
        rows = [row for row in results if row.name.endswith(_SLOW) == bool(suffix) and not row.doubt]
        free = [row.extra["seconds"] for row in rows if row.extra["locks"] == "no"]
        pipelines = [row.extra["seconds"] for row in rows if _is_pipeline(row)]
        reached = min(pipelines) / min(free) if free and pipelines else None
        doubt = "" if reached is not None else "no method of one kind reached the target"
        yield Goal(f"best pipeline over best locking-free{suffix}: seconds", wanted, reached, doubt=doubt)


def draw_time_to_accuracy(suite: Mapping[str, Any], folder: Path) -> None:
    """Seconds to the target, on the fast link and on the slow one."""
    kinds = [[row for row in suite["rows"] if row["name"].endswith(_SLOW) == slow] for slow in (False, True)]
    shown = [[row for row in rows if not row["doubt"]] for rows in kinds]
    shown = [sorted(rows, key=lambda row: row["seconds"], reverse=True) for rows in shown if rows]
    if not shown:
        return
    settings = suite["settings"]
    with chart(folder / f"time-to-accuracy-{settings['task']}.png", 1, len(shown), 3.2) as (_, axes):
        for ax, rows in zip(axes, shown, strict=True):
            for y, row in enumerate(rows):
                ax.barh(y, row["seconds"], color=colour(row["name"]), height=0.7)
                ax.annotate(
                    f"{row['seconds']:.0f}", (row["seconds"], y), (4, 0), textcoords="offset points", va="center"
                )
            ax.set_yticks(range(len(rows)), [row["name"].removesuffix(_SLOW) for row in rows])
            ax.margins(x=0.15)
            ax.grid(False, axis="y")
            where = "100 Mb/s, 50 ms (emulated)" if rows[0]["name"].endswith(_SLOW) else "one machine"
            ax.set(xlabel=f"seconds to {settings['target']}", title=where)
