"""Interleaved rounds: every round runs each case once, every other one in reverse order; beside them, predictions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from counterflow.bench.case import BenchmarkCase, RankMeasurement
from counterflow.bench.netem import JoinHandle
from counterflow.bench.results import CaseResult
from counterflow.bench.sleeping import CLASSES
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast


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
            )
        )
    return results


def peak_bytes(ranks: Sequence[RankMeasurement]) -> dict[str, Any]:
    """The peaks of the rank with the largest ones, as fields of a `CaseResult`."""
    cuda = [rank.peak_cuda_bytes for rank in ranks if rank.peak_cuda_bytes is not None]
    return {
        "peak_rss_bytes": max(rank.peak_rss_bytes for rank in ranks),
        "peak_cuda_bytes": max(cuda, default=None),
    }


def predict_seconds(case: BenchmarkCase, link: LinkSpec | None = None, overhead: float = 0.0) -> float:
    """Simulated seconds per update batch; every action takes ``overhead`` seconds beside its sleep."""
    config, sleep = case.config, case.sleep
    assert sleep is not None
    times = StageCost(sleep.forward, sleep.backward, sleep.update)
    activation_bytes = 4 * sleep.batch * sleep.width
    target_bytes = 4 * CLASSES * CLASSES + 8 * sleep.batch
    edges = config.blocks - 1
    return forecast(
        config.schedule,
        Workload([times] * config.blocks, up=[activation_bytes] * edges, down=[target_bytes] * edges),
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
    to the predictions of all cases of the same engine. The prediction of a calibrating case itself says nothing.

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
        predicted.append(result.with_extra(**metrics))
    return predicted
