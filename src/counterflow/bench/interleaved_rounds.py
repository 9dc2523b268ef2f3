"""Interleaved rounds: every round runs each case once, and every other round in reverse order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from counterflow.bench.case import BenchmarkCase, RankMeasurement
from counterflow.bench.netem import JoinHandle
from counterflow.bench.results import CaseResult
from counterflow.bench.workers import WorkerSettings, run_workers


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
