"""What the simulator says about emulated contenders, to stand beside what was measured."""

from collections.abc import Callable, Collection, Sequence

from counterflow.bench.contender import Contender
from counterflow.bench.row import StepMetrics
from counterflow.bench.sleeping import CLASSES, Sleep
from counterflow.schedule.forecast import Forecast, forecast
from counterflow.schedule.load import Link, Load, StageTimes


def load(sleep: Sleep, blocks: int) -> Load:
    """Of ``blocks`` blocks that all sleep alike."""
    times = StageTimes(sleep.forward, sleep.backward, sleep.update)
    activation = 4 * sleep.batch * sleep.width
    target = 4 * CLASSES * CLASSES + 8 * sleep.batch
    return Load([times] * blocks, up=[activation] * (blocks - 1), down=[target] * (blocks - 1))


def predict(contender: Contender, link: Link | None = None, overhead: float = 0.0) -> Forecast:
    """Of an emulated contender, over its whole run; every action takes ``overhead`` seconds more than its sleep."""
    assert contender.sleep is not None
    config = contender.config
    return forecast(
        config.schedule,
        load(contender.sleep, config.blocks),
        ranks=contender.ranks,
        batches=contender.batches,
        microbatches=contender.microbatches or 1,
        lag=config.engine.lag,
        depth=config.engine.depth,
        link=link or Link(),
        jitter=contender.sleep.jitter,
        overhead=overhead,
        keep=False,
    )


def overhead(row: StepMetrics, contender: Contender) -> float:
    """Seconds that every action took beside its sleep, if all that was not predicted of ``row`` is that."""
    assert row.samples_per_second is not None
    assert contender.sleep is not None
    measured = contender.sleep.batch / row.samples_per_second
    without, sample = predict(contender).seconds_per_batch, 0.1 * contender.sleep.total / (contender.microbatches or 1)
    slope = (predict(contender, overhead=sample).seconds_per_batch - without) / sample
    return max(0.0, (measured - without) / slope)


def beside(row: StepMetrics, contender: Contender, link: Link | None = None, overhead: float = 0.0) -> StepMetrics:
    """``row`` with the share of the ideal rate, which is that of a block that never waits, and what was predicted."""
    assert row.samples_per_second is not None
    assert contender.sleep is not None
    blocks = contender.config.blocks // contender.ranks
    forecast = contender.sleep.batch / predict(contender, link, overhead).seconds_per_batch
    return row.having(
        share_of_ideal=row.samples_per_second * blocks * contender.sleep.total / contender.sleep.batch,
        predicted_samples_per_second=forecast,
        prediction_error=forecast / row.samples_per_second - 1,
    )


def all_beside(
    found: Sequence[StepMetrics],
    contenders: Sequence[Contender],
    calibrations: Collection[str],
    link: Callable[[Contender], Link | None] = lambda _: None,
) -> list[StepMetrics]:
    """Every row with its prediction.

    Engines take time beside that of the stages, for every action. How much is taken from the rows that
    ``calibrations`` names, at most one of the free engine and one of torch's schedules, whose own predictions then say
    nothing; it goes into the predictions of all others of the same engine.
    """
    pairs = list(zip(found, contenders, strict=True))
    extra = {_free(c): overhead(row, c) for row, c in pairs if row.name in calibrations}
    predicted = [beside(row, contender, link(contender), extra.get(_free(contender), 0.0)) for row, contender in pairs]
    return [
        row.having(calibrates_ms=1e3 * extra[_free(contender)]) if row.name in calibrations else row
        for row, contender in zip(predicted, contenders, strict=True)
    ]


def _free(contender: Contender) -> bool:
    return contender.microbatches is None
