"""Rates, ratios and results from the measurements of ranks, and the order of cases."""

from dataclasses import replace

import pytest
import torch

from counterflow.bench import results
from counterflow.bench.case import BenchmarkCase, RankMeasurement, SteadyTimer, train
from counterflow.bench.results import RoundMeasurement, case_results, run_rounds, speedup
from counterflow.bench.workers import WorkerSettings
from counterflow.engine.run_context import WaitTimes
from counterflow.engine.runtime import Runtime
from tests.helpers.configs import configured


def measurement(seconds: float, batches: int = 10, wait: float = 0.0) -> RankMeasurement:
    return RankMeasurement(seconds, batches, wait, 0.0, 1.0, 1000, None, [1], 0.0)


def measured(*seconds: float) -> RoundMeasurement:
    return RoundMeasurement([measurement(each) for each in seconds], batch=8)


def benchmark_case(name: str, batch: int = 8) -> BenchmarkCase:
    config = configured(f"train.batch_size={batch}")
    return BenchmarkCase(name, 2, config, batches=10, warmup=2, task=train)


def test_the_slowest_rank_sets_the_rate() -> None:
    assert measured(1.0, 2.0).samples_per_second == pytest.approx(8 * 10 / 2.0)


def test_waits_are_a_mean_over_ranks() -> None:
    one = RoundMeasurement([measurement(2.0, wait=1.0), measurement(4.0, wait=1.0)], batch=8)
    assert one.wait_fraction == pytest.approx((0.5 + 0.25) / 2)


def test_ratios_are_medians_within_rounds() -> None:
    own, other = [measured(1.0), measured(4.0), measured(1.0)], [measured(2.0), measured(4.0), measured(3.0)]
    assert speedup(own, other) == pytest.approx(2.0)


def test_case_results() -> None:
    cases = [benchmark_case("a"), replace(benchmark_case("b"), microbatches=4)]
    results = case_results(cases, {"a": [measured(1.0), measured(2.0)], "b": [measured(2.0), measured(2.0)]}, "b")
    assert [result.name for result in results] == ["a", "b"]
    assert results[0].samples_per_second == pytest.approx(60)
    assert (results[0].lowest, results[0].highest) == pytest.approx((40, 80))
    assert results[0].ratio_to_baseline == pytest.approx(1.5)
    assert results[1].ratio_to_baseline == 1
    assert (results[0].microbatches, results[1].microbatches) == (None, 4)
    assert results[0].repeats == 2


def test_every_other_round_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def run_workers(settings: WorkerSettings, ranks: int, task: object, case: BenchmarkCase) -> list[RankMeasurement]:
        order.append(case.name)
        return [measurement(1.0)] * ranks

    monkeypatch.setattr(results, "run_workers", run_workers)
    logged: list[str] = []
    rounds = run_rounds([benchmark_case(name) for name in "abc"], 3, WorkerSettings(10), logged.append)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert {name: len(measured) for name, measured in rounds.items()} == {"a": 3, "b": 3, "c": 3}
    assert len(logged) == 9


def test_the_timer_leaves_out_the_warmup() -> None:
    waits = WaitTimes()
    timer = SteadyTimer(waits, 2, 5, Runtime(torch.device("cpu")))
    for n in range(5):
        waits.receive += 1.0
        waits.send += 0.5
        timer.on_step(1, n, {})
    timed = timer.measurement([1])
    assert (timed.batches, timed.receive_wait, timed.send_wait) == (3, 3.0, 1.5)
    assert 0 < timed.seconds < 1


def test_a_timer_on_a_gpu_waits_for_its_work_and_reads_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, calls = torch.device("cuda", 1), list[str]()

    class Stream:
        def synchronize(self) -> None:
            calls.append("synchronize")

    monkeypatch.setattr(torch.cuda, "current_stream", {gpu: Stream()}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {gpu: 77}.__getitem__)
    timer = SteadyTimer(WaitTimes(), 2, 5, Runtime(gpu))
    for n in range(5):
        timer.on_step(1, n, {})
    assert calls == ["synchronize", "synchronize"]
    assert timer.measurement([1]).peak_cuda_bytes == 77
