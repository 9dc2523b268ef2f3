"""Suite ``replicas``: copies of a pipeline that learn together, on blocks that sleep.

EMULATED: no arithmetic is done but the sums of the meetings. Messages are real, the slow link is emulated.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from counterflow.bench.case import BenchmarkCase
from counterflow.bench.charts import draw_bars
from counterflow.bench.netem import LinkSpeed, emulated_network, unavailable_reason
from counterflow.bench.options import BenchContext
from counterflow.bench.results import Goal, SuiteResult, case_results, run_rounds
from counterflow.bench.sleeping import Sleep
from counterflow.bench.workers import WorkerSettings

_BLOCKS = 4
_REPLICAS = 4
_PARAMETERS = 1 << 20
"""Numbers that every block learns: 4 MB."""
_WIDTH = 32
_PERIOD, _DELAY = 10, 5
"""Batches between two meetings, and until a mean takes effect."""
_ALONE, _GRADIENTS, _PARAMETERS_MODE = "one pipeline", "gradients", "parameters"
_SLOW = ", slow link"


def measure_replicas(context: BenchContext) -> SuiteResult:
    """Four replicas of four blocks beside one pipeline, with meetings after every batch and after every ten."""
    if (reason := unavailable_reason()) is not None:
        raise ValueError(f"suite=replicas: this machine allows no network namespaces with tunnels ({reason})")
    options, batches = context.options, 3 * _PERIOD if context.options.quick else 6 * _PERIOD
    sleep = Sleep(*options.stage.seconds(70.0, 130.0), batch=32, width=_WIDTH, parameters=_PARAMETERS)
    together = replace(sleep, replicas=_REPLICAS)
    speed = LinkSpeed(options.link.bandwidth_gbps * 1e9 / 8, options.link.latency_ms / 1e3)
    context.cases.write_images(512, pixels=4, channels=1)

    def case(name: str, sleep: Sleep, *overrides: str) -> BenchmarkCase:
        ranks = _BLOCKS * sleep.replicas
        made = context.cases.sleeping("free", sleep, ranks, batches, options=overrides, name=name)
        return replace(made, warmup=_PERIOD)

    lazily = ("sync.mode=parameters", f"sync.every={_PERIOD}", f"sync.delay={_DELAY}")
    cases = [
        case(_ALONE, sleep),
        case(_GRADIENTS, together),
        case(_PARAMETERS_MODE, together, *lazily),
        case(_PARAMETERS_MODE + _SLOW, together, *lazily, "engine.lag=3"),
    ]
    settings = WorkerSettings(timeout=120 + 3 * batches * sleep.total)
    with emulated_network(_BLOCKS * _REPLICAS, speed) as network:
        measured = run_rounds(
            cases,
            options.rounds,
            settings,
            context.log,
            lambda case: network if case.name.endswith(_SLOW) else None,
        )
    shares = {
        name: median(one.samples_per_second for one in rounds) * sleep.total / sleep.batch
        for name, rounds in measured.items()
    }
    results = [
        result.with_extra(share_of_ideal=shares[result.name]) for result in case_results(cases, measured, _ALONE)
    ]
    return SuiteResult(
        "replicas",
        settings=sleep.settings
        | {
            "blocks": _BLOCKS,
            "replicas": _REPLICAS,
            "megabytes_a_block": 4 * _PARAMETERS / 1e6,
            "period": _PERIOD,
            "delay": _DELAY,
            "link": "a router in user space; TCP and gloo over it are real",
            **asdict(options.link),
            "rounds": options.rounds,
        },
        cases=results,
        goals=[
            Goal.of(f"{name}: share of the ideal rate", wanted, shares[name], [r for r in results if r.name == name])
            for name, wanted in ((_GRADIENTS, 0.90), (_PARAMETERS_MODE + _SLOW, 0.95))
        ],
    )


def draw_replicas(suite: Mapping[str, Any], folder: Path) -> None:
    """A bar of samples per second for every case."""
    draw_bars(folder / "replicas.png", suite["rows"], "Replicas of blocks that sleep (emulated)")
