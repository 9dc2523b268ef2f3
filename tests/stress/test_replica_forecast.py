"""Forecasts of replicas and of batches in parts, held against the engine with blocks that sleep.

The forecast gets the time that sleeps really took. It wants quiet cores all the same: a wake-up that is late adds to
every wait for a message, too.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import pytest

from counterflow.bench import sleeping
from counterflow.bench.case import BenchmarkCase, RankMeasurement, train
from counterflow.bench.cases import CaseFactory
from counterflow.bench.netem import LinkSpeed, emulated_network, unavailable_reason
from counterflow.bench.sleeping import CLASSES, Sleep
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.planner.local_forecast import LocalRun, local_forecast
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload
from counterflow.topology import Topology
from counterflow.transport import Communicator

MOST = 0.05
"""Largest distance from the forecast, as a share."""
ROUNDS = 3
BATCHES = 30
SLEEP = Sleep(forward=0.07, backward=0.12, update=0.01, batch=32, width=32)


@dataclass(frozen=True, kw_only=True)
class Variant:
    blocks: int
    ranks: int
    replicas: int = 1
    parts: int = 1
    inner: str = "pipeline"
    options: Sequence[str] = ()
    local: LocalRun = field(default_factory=LocalRun)
    parameters: int = 1
    latency: float = 0.0
    """Seconds one way between two ranks, over links of 1 Gb/s."""


PARAMETERS = LocalRun(gradients=False, every=6, delay=3)
LAZILY = ("sync.mode=parameters", "sync.every=6", "sync.delay=3")
VARIANTS = {
    "two replicas of four blocks, gradients": Variant(blocks=4, ranks=8, replicas=2),
    "two replicas of four blocks, parameters": Variant(blocks=4, ranks=8, replicas=2, options=LAZILY, local=PARAMETERS),
    "four replicas of two blocks, 1 MB": Variant(blocks=2, ranks=8, replicas=4, parameters=1 << 18),
    "two replicas of two blocks on three processes": Variant(blocks=2, ranks=3, replicas=2),
    "eight pieces on four processes": Variant(blocks=4, ranks=4, replicas=2, inner="replicas"),
    "eight blocks, four parts": Variant(blocks=8, ranks=8, parts=4, local=LocalRun(parts=4)),
    "two replicas, two parts": Variant(blocks=4, ranks=8, replicas=2, parts=2, local=LocalRun(parts=2)),
    "gradients, 20 ms": Variant(blocks=2, ranks=4, replicas=2, latency=0.02),
    "parameters, 20 ms": Variant(blocks=2, ranks=4, replicas=2, options=LAZILY, local=PARAMETERS, latency=0.02),
}


Took = Mapping[float, float]
"""Mean seconds that a sleep took, by the seconds that it was to take."""


def train_and_time_sleeps(comm: Communicator, case: BenchmarkCase) -> tuple[RankMeasurement, Took]:
    took: dict[float, list[float]] = defaultdict(list)

    def pause(seconds: float) -> None:
        start = time.perf_counter()
        time.sleep(seconds)
        took[seconds].append(time.perf_counter() - start)

    sleeping.pause = pause  # this process ends with its task
    measurement = train(comm, case)
    return measurement, {seconds: mean(times) for seconds, times in took.items()}


def measured(variant: Variant, folder: Path) -> tuple[float, float]:
    """Seconds a batch of the slowest rank, and of the forecast, in the round in which they are closest."""
    factory = CaseFactory(folder)
    factory.write_images(64, pixels=4, channels=1)
    sleep = replace(SLEEP, replicas=variant.replicas, parts=variant.parts, parameters=variant.parameters)
    pieces, options = variant.blocks * variant.replicas, (*variant.options, f"topology.inner={variant.inner}")
    case = factory.sleeping("free", sleep, pieces, BATCHES, options=options)
    case = replace(case, ranks=variant.ranks, warmup=11)  # the rest spans three periods of meetings
    speed = LinkSpeed(125e6, variant.latency)
    found = []
    with emulated_network(variant.ranks, speed) if variant.latency else nullcontext() as network:
        for _ in range(ROUNDS):
            settings = WorkerSettings(timeout=120, network=network)
            ranks = run_workers(settings, variant.ranks, train_and_time_sleeps, case)
            seconds = max(rank.seconds / rank.batches for rank, _ in ranks)
            found.append((seconds, predicted(variant, [took for _, took in ranks])))
    return min(found, key=lambda pair: abs(pair[0] / pair[1] - 1))


def predicted(variant: Variant, took: Sequence[Took]) -> float:
    edges, share, parts = variant.blocks - 1, SLEEP.batch // variant.replicas, variant.parts

    def real(seconds: float) -> float:
        return mean(rank[seconds] for rank in took)

    cost = StageCost(parts * real(SLEEP.forward / parts), parts * real(SLEEP.backward / parts), real(SLEEP.update))
    workload = Workload(
        [cost] * variant.blocks,
        up=[4 * share * SLEEP.width] * edges,
        down=[4 * CLASSES * CLASSES + share] * edges,
    )
    link = LinkSpec(variant.latency, 125e6) if variant.latency else LinkSpec()
    return local_forecast(
        Topology(variant.blocks, variant.ranks, variant.replicas, variant.inner),
        workload,
        variant.local,
        batches=BATCHES,
        vectors=[4 * variant.parameters] * variant.blocks,
        link_of=lambda edge: link,
    ).seconds_per_batch


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_takes_as_long_as_forecast(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    if variant.latency and (reason := unavailable_reason()) is not None:
        pytest.skip(f"no network namespaces: {reason}")
    found, expected = measured(variant, tmp_path)
    print(f"{name}: measured {1e3 * found:.1f} ms, forecast {1e3 * expected:.1f} ms, {found / expected - 1:+.1%}")
    assert found == pytest.approx(expected, rel=MOST)
