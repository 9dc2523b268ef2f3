"""Results of a suite: measured in interleaved rounds, beside predictions, as JSON, and as tables in the terminal and in
Markdown. Every round runs each case once, and every other round in reverse order."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from rich import box
from rich.table import Column, Table

from counterflow.bench.case import BenchmarkCase, RankMeasurement
from counterflow.bench.netem import JoinHandle
from counterflow.bench.sleeping import CLASSES
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast

SuiteJson = Mapping[str, Any]
"""`SuiteResult.to_json`, with the keys that `counterflow.bench.cli` adds."""


_CLOSE = 0.10
"""Distance from its prediction, as a share, up to which an emulated row counts."""
_BUSY = 0.9
"""Share of all processors that ranks of sleeping blocks may keep busy before they are what is measured."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Medians of one case over its rounds, with the lowest and the highest round. None: not measured by the suite."""

    name: str
    ranks: int
    samples_per_second: float | None = None
    lowest: float | None = None
    highest: float | None = None
    baseline: str | None = None
    """Name of the case that the ratios refer to."""
    ratio_to_baseline: float | None = None
    ratio_lowest: float | None = None
    ratio_highest: float | None = None
    wait_fraction: float | None = None
    peak_rss_bytes: int | None = None
    """Peak of the rank with the largest one."""
    peak_cuda_bytes: int | None = None
    batch: int | None = None
    """Samples of an update batch."""
    microbatches: int | None = None
    repeats: int = 1
    doubt: str = ""
    """Why this row counts for no ratio and no goal; empty if it counts."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of this suite alone."""

    def with_extra(self, **metrics: float | str | None) -> "CaseResult":
        return replace(self, extra={**self.extra, **metrics})


@dataclass(frozen=True)
class Goal:
    """A bound for one metric, and the value that was reached."""

    text: str
    wanted: float
    reached: float | None
    """None if a row that it rests on is in doubt."""
    at_most: bool = False
    """The bound is an upper one."""
    doubt: str = ""
    """Why it is not counted."""

    @classmethod
    def of(cls, text: str, wanted: float, reached: float | None, rows: Sequence[CaseResult]) -> "Goal":
        """A lower bound that rests on ``rows``."""
        doubts = [f"{row.name}: {row.doubt}" for row in rows if row.doubt]
        return cls(text, wanted, None if doubts else reached, doubt="; ".join(doubts))

    @property
    def met(self) -> bool:
        if self.reached is None:
            return False
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


@dataclass(frozen=True)
class SuiteResult:
    """Results of all cases of one suite."""

    suite: str
    settings: Mapping[str, Any]
    """Settings in words and numbers. The key ``emulated`` is set if blocks slept."""
    cases: Sequence[CaseResult]
    goals: Sequence[Goal]

    def to_json(self) -> dict[str, Any]:
        """The object in ``bench.json``; metrics of the suite alone stand beside the common ones."""
        rows = [asdict(case) for case in self.cases]
        for row in rows:
            row |= row.pop("extra")
        return {
            "suite": self.suite,
            "settings": dict(self.settings),
            "rows": rows,
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
        }


@dataclass(frozen=True)
class RoundMeasurement:
    """Measurements of one case in one round."""

    ranks: Sequence[RankMeasurement]
    batch: int
    """Samples of an update batch."""

    @property
    def samples_per_second(self) -> float:
        """Rate of the slowest rank."""
        return min(self.batch * rank.batches / rank.seconds for rank in self.ranks)

    @property
    def wait_fraction(self) -> float:
        """Share of time spent waiting for messages and for free send buffers, averaged over ranks."""
        return sum((rank.receive_wait + rank.send_wait) / rank.seconds for rank in self.ranks) / len(self.ranks)

    @property
    def processors(self) -> float:
        """Processors that all ranks together kept busy."""
        return sum(rank.processor_seconds / rank.seconds for rank in self.ranks)


Measurements = Mapping[str, Sequence[RoundMeasurement]]
"""By name of the case, one per round."""


def run_rounds(
    cases: Sequence[BenchmarkCase],
    rounds: int,
    settings: WorkerSettings,
    log: Callable[[str], None],
    network_of: Callable[[BenchmarkCase], JoinHandle | None] = lambda _: None,
) -> Measurements:
    """Measure every case in every round.

    Args:
        cases: Cases with different names.
        rounds: Number of rounds.
        settings: Settings of the processes of all cases.
        log: Shows one line of progress.
        network_of: The emulated network of a case, if it has one.

    Raises:
        WorkerError: A measurement failed.
    """
    measured: dict[str, list[RoundMeasurement]] = {case.name: [] for case in cases}
    assert len(measured) == len(cases), "two cases have the same name"
    for i in range(rounds):
        for case in cases if i % 2 == 0 else reversed(cases):
            ranks = run_workers(replace(settings, network=network_of(case)), case.ranks, case.task, case)
            latest = RoundMeasurement(ranks, case.config.train.batch_size)
            measured[case.name].append(latest)
            log(f"round {i + 1} of {rounds}: P={case.ranks}: {case.name}: {latest.samples_per_second:,.1f} samples/s")
    return measured


def speedup(own: Sequence[RoundMeasurement], other: Sequence[RoundMeasurement]) -> float:
    """Median over rounds of the ratio of rates within a round."""
    return median(_speedups(own, other))


def _speedups(own: Sequence[RoundMeasurement], other: Sequence[RoundMeasurement]) -> list[float]:
    return [one.samples_per_second / base.samples_per_second for one, base in zip(own, other, strict=True)]


def case_results(cases: Sequence[BenchmarkCase], measured: Measurements, baseline: str) -> list[CaseResult]:
    """A result for each case; its ratios refer to the case named ``baseline``."""
    results = []
    for case in cases:
        own = measured[case.name]
        rates = [one.samples_per_second for one in own]
        ratios = _speedups(own, measured[baseline])
        results.append(
            CaseResult(
                name=case.name,
                ranks=case.ranks,
                samples_per_second=median(rates),
                lowest=min(rates),
                highest=max(rates),
                baseline=baseline,
                ratio_to_baseline=median(ratios),
                ratio_lowest=min(ratios),
                ratio_highest=max(ratios),
                wait_fraction=median(one.wait_fraction for one in own),
                **peak_bytes([rank for one in own for rank in one.ranks]),
                batch=case.config.train.batch_size,
                microbatches=case.microbatches,
                repeats=len(own),
                doubt=_shortage(median(one.processors for one in own)) if case.sleep is not None else "",
            )
        )
    return _counted(results)


def _shortage(processors: float) -> str:
    """Doubt in the rate of blocks that sleep, whose ranks kept so many processors busy; empty if there is none."""
    cores = len(os.sched_getaffinity(0))
    return f"limited by this machine's {cores} cores" if processors > _BUSY * cores else ""


def _counted(results: Sequence[CaseResult]) -> list[CaseResult]:
    """``results`` without ratios that rest on a row in doubt."""
    doubtful = {result.name for result in results if result.doubt}
    return [
        replace(result, ratio_to_baseline=None, ratio_lowest=None, ratio_highest=None)
        if doubtful & {result.name, result.baseline}
        else result
        for result in results
    ]


def peak_bytes(ranks: Sequence[RankMeasurement]) -> dict[str, Any]:
    """The peaks of the rank with the largest ones, as fields of a `CaseResult`."""
    cuda = (rank.peak_cuda_bytes for rank in ranks if rank.peak_cuda_bytes is not None)
    return {"peak_rss_bytes": max(rank.peak_rss_bytes for rank in ranks), "peak_cuda_bytes": max(cuda, default=None)}


def predict_seconds(case: BenchmarkCase, link: LinkSpec | None = None, overhead: float = 0.0) -> float:
    """Simulated seconds per update batch; every action takes ``overhead`` seconds beside its sleep."""
    config, sleep = case.config, case.sleep
    assert sleep is not None
    edges = config.blocks - 1
    workload = Workload(
        [StageCost(sleep.forward, sleep.backward, sleep.update)] * config.blocks,
        up=[4 * sleep.batch * sleep.width] * edges,
        down=[4 * CLASSES * CLASSES + 8 * sleep.batch] * edges,
    )
    return forecast(
        config.schedule,
        workload,
        ranks=case.ranks,
        batches=case.batches,
        microbatches=case.microbatches or 1,
        lag=config.engine.lag,
        depth=config.engine.depth,
        link=link or LinkSpec(),
        jitter=sleep.jitter,
        overhead=overhead,
    ).seconds_per_batch


def estimate_overhead(result: CaseResult, case: BenchmarkCase) -> float:
    """Seconds per action that explain the difference between measurement and prediction."""
    assert case.sleep is not None
    assert result.samples_per_second is not None
    without, sample = predict_seconds(case), 0.1 * case.sleep.total / (case.microbatches or 1)
    slope = (predict_seconds(case, overhead=sample) - without) / sample
    return max(0.0, (case.sleep.batch / result.samples_per_second - without) / slope)


def with_predictions(
    results: Sequence[CaseResult],
    cases: Sequence[BenchmarkCase],
    calibrations: Collection[str] = (),
    link_of: Callable[[BenchmarkCase], LinkSpec | None] = lambda _: None,
) -> list[CaseResult]:
    """``results`` with the share of the ideal rate and the prediction; a block that never waits has the ideal rate.

    An engine takes some time for every action. It is estimated from the results that ``calibrations`` names, and added
    to the predictions of all cases of the same engine. The prediction of a calibrating case itself says nothing. A row
    that is further than `_CLOSE` from its prediction is in doubt: what limits it is not its schedule.

    Args:
        results: One per case.
        cases: Emulated cases.
        calibrations: Names, at most one of the free engine and one of torch's schedules.
        link_of: The link that a case ran over; None for an ideal one.
    """
    overheads = {
        case.microbatches is None: estimate_overhead(result, case)
        for result, case in zip(results, cases, strict=True)
        if result.name in calibrations
    }
    predicted = []
    for result, case in zip(results, cases, strict=True):
        assert case.sleep is not None
        assert result.samples_per_second is not None
        overhead, measured = overheads.get(case.microbatches is None, 0.0), case.sleep.batch / result.samples_per_second
        seconds = predict_seconds(case, link_of(case), overhead)
        metrics = {
            "share_of_ideal": case.config.blocks // case.ranks * case.sleep.total / measured,
            "predicted_samples_per_second": case.sleep.batch / seconds,
            "prediction_error": measured / seconds - 1,
        }
        if result.name in calibrations:
            metrics["calibrates_ms"] = 1e3 * overhead
        elif not result.doubt and abs(metrics["prediction_error"]) > _CLOSE:
            result = replace(result, doubt=f"{metrics['prediction_error']:+.0%} off its prediction")
        predicted.append(result.with_extra(**metrics))
    return _counted(predicted)


def terminal_table(suite: SuiteJson) -> Table:
    """One line per case, one column per metric that at least one case has."""
    header, lines = cells(suite)
    columns = [Column(name, justify="left" if name == "name" else "right", no_wrap=name == "name") for name in header]
    grid = Table(*columns, title=suite_title(suite), box=box.SIMPLE_HEAD, title_justify="left")
    for line in lines:
        grid.add_row(*line)
    return grid


def markdown(suites: Sequence[SuiteJson]) -> str:
    """All suites, each with its settings, its goals and the command that measured it."""
    return "\n".join(line for suite in suites for line in _section(suite))


def _section(suite: SuiteJson) -> Iterator[str]:
    header, lines = cells(suite)
    yield f"## {suite_title(suite)}\n"
    yield f"`{suite['command']}`, {suite['seconds']:.0f} s; {suite['hardware']}, torch {suite['torch_version']}, "
    yield f"commit {(suite['git_commit'] or 'unknown')[:12]}.\n"
    yield "; ".join(f"{name.replace('_', ' ')}: {_number(value)}" for name, value in suite["settings"].items()) + ".\n"
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---' if name == 'name' else '---:' for name in header)}|"
    yield from (f"| {' | '.join(line)} |" for line in lines)
    yield ""
    yield from (f"- {line}" for line in goal_lines(suite))
    yield ""


def suite_title(suite: SuiteJson) -> str:
    return f"{suite['suite']} (EMULATED)" if "emulated" in suite["settings"] else str(suite["suite"])


def goal_lines(suite: SuiteJson) -> Iterator[str]:
    for goal in suite["goals"]:
        if goal["reached"] is None:
            yield f"goal: {goal['text']}: not counted ({goal['doubt']})"
            continue
        sign, verdict = "<=" if goal["at_most"] else ">=", "reached" if goal["met"] else "NOT reached"
        yield f"goal: {goal['text']}: {goal['reached']:.3g}, wanted {sign} {goal['wanted']:.3g}: {verdict}"


def cells(suite: SuiteJson) -> tuple[list[str], list[list[str]]]:
    """The header, and one line of texts per case; a cell without a value is empty."""
    rows = suite["rows"]
    columns = {
        title: ["" if row[key] is None else text(row) for row in rows] for title, (key, text) in _COLUMNS.items()
    }
    for key in dict.fromkeys(key for row in rows for key in row if key not in _NO_PLAIN_COLUMN):
        columns[_TITLES.get(key, key.replace("_", " "))] = [format_value(key, row.get(key)) for row in rows]
    kept = {title: column for title, column in columns.items() if any(column)}
    return list(kept), [list(line) for line in zip(*kept.values(), strict=True)]


def format_value(key: str, value: Any) -> str:
    """Text of a cell; shares are shown in percent."""
    if value is None or isinstance(value, str):
        return value or ""
    if key.startswith(("share", "prediction_error", "wait_fraction")):
        return f"{100 * value:.1f} %"
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _ratio_range(row: SuiteJson) -> str:
    return "" if row["name"] == row["baseline"] else f"{row['ratio_lowest']:.2f}-{row['ratio_highest']:.2f}"


_COLUMNS: dict[str, tuple[str, Callable[[SuiteJson], str]]] = {
    "P": ("ranks", lambda row: str(row["ranks"])),
    "name": ("name", lambda row: str(row["name"])),
    "samples/s": ("samples_per_second", lambda row: _number(row["samples_per_second"])),
    "spread": ("lowest", lambda row: f"{100 * (row['highest'] - row['lowest']) / row['samples_per_second']:.0f} %"),
    "ratio": ("ratio_to_baseline", lambda row: f"{row['ratio_to_baseline']:.2f}"),
    "from-to": ("ratio_lowest", _ratio_range),
    "waits": ("wait_fraction", lambda row: f"{100 * row['wait_fraction']:.0f} %"),
    "RSS [MB]": ("peak_rss_bytes", lambda row: f"{row['peak_rss_bytes'] / 1e6:,.0f}"),
    "CUDA [MB]": ("peak_cuda_bytes", lambda row: f"{row['peak_cuda_bytes'] / 1e6:,.0f}"),
}
"""By title: the key that must have a value, and the text of a row."""
_TITLES = {
    "share_of_ideal": "of ideal",
    "predicted_samples_per_second": "predicted",
    "prediction_error": "off by",
    "calibrates_ms": "calibrates [ms]",
}
_NO_PLAIN_COLUMN = (
    "name", "ranks", "samples_per_second", "lowest", "highest", "baseline", "ratio_to_baseline", "ratio_lowest",
    "ratio_highest", "wait_fraction", "peak_rss_bytes", "peak_cuda_bytes", "batch", "microbatches", "repeats",
    "way", "bytes", "mb_per_second_lowest", "mb_per_second_highest", "saved_mb_of_each", "messages_mb_of_the_most",
    "stashed_mb_of_each", "all_mb_of_the_most", "saved_over_bll", "all_over_bll", "model", "convolutions",
)  # fmt: skip
"""Keys that `_COLUMNS` shows, or that only charts read."""
