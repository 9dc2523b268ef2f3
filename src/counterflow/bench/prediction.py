"""Predictions of the simulator for emulated cases, beside what was measured."""

from collections.abc import Callable, Collection, Sequence

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.results import CaseResult
from counterflow.bench.sleeping import CLASSES
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast


def predict_seconds(case: BenchmarkCase, link: LinkSpec | None = None, overhead: float = 0.0) -> float:
    """Simulated seconds per update batch; every action takes ``overhead`` seconds beside its sleep."""
    assert case.sleep is not None
    config, sleep = case.config, case.sleep
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
    without, sample = predict_seconds(case), 0.1 * case.sleep.total / (case.microbatches or 1)
    slope = (predict_seconds(case, overhead=sample) - without) / sample
    return max(0.0, (_measured_seconds(result, case) - without) / slope)


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
        _is_pipeline(case): estimate_overhead(result, case)
        for result, case in zip(results, cases, strict=True)
        if result.name in calibrations
    }
    predicted = []
    for result, case in zip(results, cases, strict=True):
        assert case.sleep is not None
        overhead = overheads.get(_is_pipeline(case), 0.0)
        seconds, measured = predict_seconds(case, link_of(case), overhead), _measured_seconds(result, case)
        metrics = {
            "share_of_ideal": case.config.blocks // case.ranks * case.sleep.total / measured,
            "predicted_samples_per_second": case.sleep.batch / seconds,
            "prediction_error": measured / seconds - 1,
        }
        if result.name in calibrations:
            metrics["calibrates_ms"] = 1e3 * overhead
        predicted.append(result.with_extra(**metrics))
    return predicted


def _measured_seconds(result: CaseResult, case: BenchmarkCase) -> float:
    """Seconds per update batch."""
    assert result.samples_per_second is not None
    assert case.sleep is not None
    return case.sleep.batch / result.samples_per_second


def _is_pipeline(case: BenchmarkCase) -> bool:
    return case.microbatches is not None
