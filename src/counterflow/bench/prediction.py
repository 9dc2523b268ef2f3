"""What the simulator says about emulated contenders, to stand beside what was measured."""

from counterflow.bench.contender import Contender
from counterflow.bench.row import Row
from counterflow.bench.sleeping import CLASSES, Sleep
from counterflow.schedule.forecast import Forecast, forecast
from counterflow.schedule.load import Link, Load, StageTimes


def load(sleep: Sleep, blocks: int) -> Load:
    """Of ``blocks`` blocks that all sleep alike."""
    times = StageTimes(sleep.forward, sleep.backward, sleep.update)
    activation = 4 * sleep.batch * sleep.width
    target = 4 * CLASSES * CLASSES + 8 * sleep.batch
    return Load([times] * blocks, up=[activation] * (blocks - 1), down=[target] * (blocks - 1))


def predict(contender: Contender, link: Link | None = None) -> Forecast:
    """Of an emulated contender, over its whole run."""
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
        keep=False,
    )


def beside(row: Row, contender: Contender, link: Link | None = None) -> Row:
    """``row`` with the share of the ideal rate, which is that of a block that never waits, and what was predicted."""
    assert row.samples_per_second is not None
    assert contender.sleep is not None
    blocks = contender.config.blocks // contender.ranks
    forecast = contender.sleep.batch / predict(contender, link).seconds_per_batch
    return row.having(
        share_of_ideal=row.samples_per_second * blocks * contender.sleep.total / contender.sleep.batch,
        predicted_samples_per_second=forecast,
        prediction_error=forecast / row.samples_per_second - 1,
    )
