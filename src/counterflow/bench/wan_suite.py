"""Suite ``wan``: training that is real, over links that are EMULATED, from a household's to a data centre's.

Two ranks of one thread each. Every method trains the same network on the same batches over every link; on the middle
one, the fastest also say how far ten minutes bring them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterflow.bench.case import BenchmarkCase, RankMeasurement, train, train_ddp
from counterflow.bench.charts import chart, colour
from counterflow.bench.netem import JoinHandle, LinkSpeed, emulated_network, unavailable_reason
from counterflow.bench.options import BenchContext
from counterflow.bench.results import CaseResult, Goal, SuiteResult, peak_bytes
from counterflow.bench.whole_run import count_ddp_sent, count_sent, last_figure, train_whole, train_whole_ddp
from counterflow.bench.workers import WorkerSettings, run_workers
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.schedule.forecast import LinkSpec, StageCost, Workload, forecast

_RANKS = 2
_TIMEOUT = 1800.0
_SECONDS = 40.0
"""Most seconds of a measurement, as far as the number of its batches decides them."""
_FEWEST, _MOST = 9, 40
"""Batches of a measurement; a third of them are not timed."""
_MOST_LAG = 16
_TEN_MINUTES = 600.0
_FINALISTS = 4


@dataclass(frozen=True)
class _Link:
    name: str
    speed: LinkSpeed | None
    """None: the loopback of this machine."""


def _link(megabits: float, milliseconds: float, **other: Any) -> _Link:
    speed = LinkSpeed(megabits * 1e6 / 8, milliseconds / 1e3, **other)
    size = f"{megabits / 1e3:g} Gb/s" if megabits >= 1000 else f"{megabits:g} Mb/s"
    loss = f", {speed.loss:.1%} lost, small packets" if speed.internet else ""
    return _Link(f"{size}, {milliseconds:g} ms{loss}", speed)


_LOOPBACK = _Link("loopback", None)
_NEAR, _MIDDLE = _link(1000, 10), _link(100, 50)
_LINKS = (
    _LOOPBACK,
    *(_NEAR, _link(1000, 5), _link(1000, 50), _link(100, 5), _MIDDLE, _link(20, 5), _link(20, 50)),
    _link(100, 50, internet=True, loss=0.001),
)


@dataclass(frozen=True)
class _Method:
    name: str
    options: tuple[str, ...]
    kind: str
    """``free``, ``pipeline``, ``ddp`` or ``replicas``."""
    wire: str = "fp32"


def _methods(local: str, name: str, *options: str) -> tuple[_Method, ...]:
    """``local`` with every wire, pipelines of backprop, DDP, and whole replicas that meet every ten batches."""
    free = (
        _Method(f"{name}, {wire}", (f"algorithm={local}", *options, "blocks=2", f"engine.wire={wire}"), "free", wire)
        for wire in ("fp32", "bf16", "int8")
    )
    pipelines = (
        _Method(
            f"{label} m={m}, {wire}",
            (
                *("algorithm=bp", f"schedule={schedule}", f"blocks={blocks}"),
                *(f"train.microbatches={m}", f"engine.wire={wire}"),
            ),
            "pipeline",
            wire,
        )
        for schedule, label, blocks in (("1f1b", "1F1B", 2), ("zbv", "ZBV", 4))
        for m in (4, 8)
        for wire in ("fp32", "int8")
    )
    lazily = ("replicas=2", "sync.mode=parameters", "sync.every=10", "sync.delay=5")
    return (
        *free,
        *pipelines,
        _Method("DDP", ("algorithm=bp", "blocks=1"), "ddp"),
        _Method("whole replicas", ("algorithm=predsim", "algorithm.beta=0", "blocks=1", *lazily), "replicas"),
    )


_OPTIONS = {
    "cifar10": ("experiment=cifar10_tuning", "scale=cpu", "train.batch_size=240"),
    "text": ("experiment=lm", "scale=cpu", "train.evaluate_every=0"),
}
_FIGURES = {"cifar10": "accuracy", "text": "bits_per_byte"}
_METHODS = {
    "cifar10": _methods("bll", "BLL"),
    "text": _methods("predsim", "local cross entropy", "algorithm.beta=0", "algorithm.head.layers=1"),
}


def measure_wan(context: BenchContext) -> SuiteResult:
    """Every method of ``task.name`` over every link; with ``quick``, over the loopback and the middle one.

    Raises:
        ValueError: This machine cannot emulate links, or ``task.root`` is missing.
    """
    if (reason := unavailable_reason()) is not None:
        raise ValueError(f"suite=wan: this machine allows no network namespaces with tunnels ({reason})")
    name = context.options.task.name
    common = [*_OPTIONS[name], *context.options.task.of_data(), "engine.threads=1", "device=cpu", "train.epochs=1000"]
    base = load_config([*common, f"train.steps={_MOST}"])
    links = (_LOOPBACK, _MIDDLE) if context.options.quick else _LINKS
    results: list[CaseResult] = []
    fast: dict[str, _Costs] = {}
    for link in links:
        with emulated_network(_RANKS, link.speed) if link.speed else nullcontext() as network:
            for method in _METHODS[name]:
                context.log(f"{link.name}: {method.name}")
                config = load_config([*common, *method.options])
                if link.speed is None:
                    fast[method.name] = _costs(method, config)
                results.append(_measure(method, config, link, network, fast[method.name]))
                if link.speed is None:
                    alone = results[-1].extra["milliseconds_of_a_batch"] / 1e3
                    fast[method.name] = replace(fast[method.name], seconds=alone)
    results = _after_ten_minutes(context, common, _FIGURES[name], results)
    return SuiteResult(
        "wan",
        settings={
            "emulated": "the links, by a router in user space: packets of 65,000 bytes and open TCP windows, but where "
            "packets are lost; the training is real",
            "task": name,
            "samples of a batch": base.train.batch_size,
            "ranks": f"{_RANKS}, one thread each",
        },
        cases=results,
        goals=list(_goals(results)),
    )


@dataclass(frozen=True)
class _Costs:
    """Costs of a batch of a method without a link."""

    sent: float
    """Bytes over the link, both directions."""
    seconds: float | None = None


def _costs(method: _Method, config: TrainConfig) -> _Costs:
    if method.kind == "replicas":  # of every rank its slice of the parameters and the sum of the other one
        return _Costs(_of_one(count_ddp_sent, config) / 2 / config.sync.every)
    return _Costs(_of_one(count_ddp_sent if method.kind == "ddp" else count_sent, config))


def _of_one(task: Callable[..., float], config: TrainConfig) -> float:
    (value,) = run_workers(WorkerSettings(_TIMEOUT), 1, task, config, _RANKS)
    return value


def _measure(
    method: _Method, config: TrainConfig, link: _Link, network: JoinHandle | None, costs: _Costs
) -> CaseResult:
    lag = config.engine.lag
    batches = _MOST
    if link.speed is not None and costs.seconds is not None:
        if method.kind == "free":
            lag = config.engine.lag = planned_lag(costs.seconds, costs.sent, link.speed)
        expected = max(costs.seconds, costs.sent / 2 / link.speed.bandwidth) + 2 * link.speed.latency
        batches = min(_MOST, max(_FEWEST, int(_SECONDS / expected)))
    task = train_ddp if method.kind == "ddp" else train
    case = BenchmarkCase(
        name=f"{method.name} | {link.name}",
        ranks=_RANKS,
        config=config,
        batches=batches,
        warmup=batches // 3,
        task=task,
    )
    ranks: list[RankMeasurement] = run_workers(WorkerSettings(_TIMEOUT, network=network), _RANKS, task, case)
    seconds = max(rank.seconds / rank.batches for rank in ranks)
    return CaseResult(
        name=case.name,
        ranks=_RANKS,
        samples_per_second=config.train.batch_size / seconds,
        wait_fraction=sum((rank.receive_wait + rank.send_wait) / rank.seconds for rank in ranks) / len(ranks),
        **peak_bytes(ranks),
        batch=config.train.batch_size,
        extra={
            "method": method.name,
            "kind": method.kind,
            "wire": method.wire,
            "link": link.name,
            "lag": str(lag) if method.kind == "free" else None,
            "milliseconds_of_a_batch": 1e3 * seconds,
            "sent_megabytes_of_a_batch": costs.sent / 1e6,
        },
    )


def planned_lag(seconds: float, sent: float, speed: LinkSpeed) -> int:
    """The smallest lag whose predicted rate over the link is within 1 % of the best.

    Args:
        seconds: A batch without the link, on two equal blocks.
        sent: Bytes of a batch; almost all of them go up.
        speed: The link.
    """
    work = Workload([StageCost(seconds / 3, 2 * seconds / 3)] * 2, up=[round(sent)], down=[1000])
    link = LinkSpec(speed.latency, speed.bandwidth)
    predicted = {
        lag: forecast("free", work, ranks=2, batches=4 * _MOST_LAG, lag=lag, depth=2, link=link).seconds_per_batch
        for lag in range(2, _MOST_LAG + 1)
    }
    return next(lag for lag, value in predicted.items() if value <= 1.01 * min(predicted.values()))


def _after_ten_minutes(
    context: BenchContext, common: Sequence[str], figure: str, results: Sequence[CaseResult]
) -> list[CaseResult]:
    """``results`` with the figure on held-out data that the fastest over the middle link have after ten minutes.

    They run over the loopback for as many batches as the link allows: no bit of theirs depends on it.
    """
    methods = {method.name: method for method in _METHODS[context.options.task.name]}
    ordered = sorted(
        (row for row in results if row.extra["link"] == _MIDDLE.name and row.extra["kind"] != "replicas"),
        key=lambda row: -(row.samples_per_second or 0.0),
    )
    found: dict[str, float] = {}
    for row in ordered[:_FINALISTS]:
        method = methods[row.extra["method"]]
        steps = int(_TEN_MINUTES / (row.extra["milliseconds_of_a_batch"] / 1e3))
        context.log(f"ten minutes of {row.name}: {steps} batches")
        lag = [f"engine.lag={row.extra['lag']}"] if row.extra["lag"] else []
        config = load_config([*common, *method.options, *lag, f"train.steps={steps}"])
        ranks = run_workers(
            WorkerSettings(2 * _TIMEOUT), _RANKS, train_whole_ddp if method.kind == "ddp" else train_whole, config
        )
        found[row.name] = last_figure(ranks, figure)
    return [row.with_extra(figure_after_ten_minutes=found.get(row.name)) for row in results]


def _goals(results: Sequence[CaseResult]) -> Iterator[Goal]:
    def rates(link: _Link, kind: str, wire: str) -> list[float]:
        wanted = {"link": link.name, "kind": kind, "wire": wire}
        return [row.samples_per_second or 0.0 for row in results if wanted.items() <= row.extra.items()]

    for wire in ("fp32", "int8"):
        (free,) = rates(_MIDDLE, "free", wire)
        text = f"{_MIDDLE.name}, {wire}: locking-free over"
        yield Goal(f"{text} the best pipeline", 2.0, free / max(rates(_MIDDLE, "pipeline", wire)))
        yield Goal(f"{text} DDP", 1.3, free / max(rates(_MIDDLE, "ddp", "fp32")))
        if near := rates(_NEAR, "free", wire):
            alone = rates(_LOOPBACK, "free", wire)
            yield Goal(f"{wire}: locking-free, {_NEAR.name} over loopback", 0.95, near[0] / alone[0])


def draw_wan(suite: Mapping[str, Any], folder: Path) -> None:
    """Samples per second over every link, a group of bars a link."""
    rows, links = suite["rows"], list(dict.fromkeys(row["link"] for row in suite["rows"]))
    best = [max((row for row in rows if row["method"] == name), key=_rate) for name in _best_names(rows)]
    names = [row["method"] for row in best]
    height = 0.3 * len(links) * (len(names) + 1) + 1
    with chart(folder / f"wan-{suite['settings']['task']}.png", 1, 1, height) as (_, (axes,)):
        for place, name in enumerate(names):
            own = {row["link"]: row for row in rows if row["method"] == name}
            heights = [-(i * (len(names) + 1) + place) for i in range(len(links))]
            axes.barh(heights, [_rate(own[link]) for link in links], color=colour(name), label=name)
        axes.set_yticks([-(i * (len(names) + 1) + (len(names) - 1) / 2) for i in range(len(links))], links)
        axes.grid(False, axis="y")
        axes.set(xlabel="samples/s", title="Two ranks over emulated links")
        axes.legend()


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["samples_per_second"])


def _best_names(rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """The free methods, the others, and of the pipelines the best over the middle link with either wire."""
    middle = [row for row in rows if row["link"] == _MIDDLE.name]
    pipelines = [row for row in middle if row["kind"] == "pipeline"]
    best = {max((row for row in pipelines if row["wire"] == wire), key=_rate)["method"] for wire in ("fp32", "int8")}
    return [row["method"] for row in middle if row["kind"] != "pipeline" or row["method"] in best]
