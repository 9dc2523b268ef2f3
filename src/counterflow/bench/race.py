"""Contenders side by side: every round runs each of them once, and every other round in the opposite order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from counterflow.bench.contender import Contender, Reading
from counterflow.bench.crew import Setting, run
from counterflow.bench.row import StepMetrics

Told = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One contender in one round."""

    readings: Sequence[Reading]
    batch: int

    @property
    def rate(self) -> float:
        """Samples per second, of the slowest rank."""
        return min(self.batch * reading.lap.batches / reading.lap.seconds for reading in self.readings)

    @property
    def wait(self) -> float:
        """The mean share of time that a rank waited, for messages or for room."""
        laps = [reading.lap for reading in self.readings]
        return sum((lap.receive_wait + lap.send_wait) / lap.seconds for lap in laps) / len(laps)


def race(
    contenders: Sequence[Contender], rounds: int, setting: Callable[[Contender], Setting], log: Told
) -> Mapping[str, Sequence[Measured]]:
    """Measurements by name, one a round, each in the ``setting`` of its contender. Raises `CrewError`."""
    measured: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
    assert len(measured) == len(contenders), "contenders have names of their own"
    for i in range(rounds):
        for contender in contenders if i % 2 == 0 else reversed(contenders):
            readings = run(setting(contender), contender.ranks, contender.task, contender)
            found = Measured(readings, contender.config.train.batch_size)
            measured[contender.name].append(found)
            log(f"round {i + 1} of {rounds}: {contender.name}: {found.rate:,.1f} samples/s")
    return measured


def ratio(own: Sequence[Measured], other: Sequence[Measured]) -> float:
    """The median of the ratios of rates within a round."""
    return median(_ratios(own, other))


def _ratios(own: Sequence[Measured], other: Sequence[Measured]) -> list[float]:
    return [one.rate / base.rate for one, base in zip(own, other, strict=True)]


def rows(
    contenders: Sequence[Contender], measured: Mapping[str, Sequence[Measured]], baseline: str
) -> list[StepMetrics]:
    """A row for each contender. Ratios are medians of those within a round, to the contender named ``baseline``."""
    found = []
    for contender in contenders:
        own, other = measured[contender.name], measured[baseline]
        rates = [one.rate for one in own]
        ratios = _ratios(own, other)
        cuda = [reading.peak_cuda_bytes for one in own for reading in one.readings]
        found.append(
            StepMetrics(
                name=contender.name,
                ranks=contender.ranks,
                samples_per_second=median(rates),
                lowest=min(rates),
                highest=max(rates),
                baseline=baseline,
                ratio_to_baseline=median(ratios),
                ratio_lowest=min(ratios),
                ratio_highest=max(ratios),
                wait_fraction=median(one.wait for one in own),
                peak_rss_bytes=max(reading.peak_rss_bytes for one in own for reading in one.readings),
                peak_cuda_bytes=max((value for value in cuda if value is not None), default=None),
                batch=contender.config.train.batch_size,
                microbatches=contender.microbatches,
                repeats=len(own),
            )
        )
    return found
