"""Command line of ``launch/plan.py``: profile the model, search, print the candidates and the command of the best."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from counterflow.cli.console import EXIT_USAGE
from counterflow.cli.hydra_app import run_hydra, validate
from counterflow.engine.runtime import intra_op_threads
from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import profile_model, with_wire
from counterflow.planner.options import Cluster, PlanConfig
from counterflow.planner.reasons import reasons
from counterflow.planner.search import COMPARED, Candidate, SearchResult, search
from counterflow.trainer.job_builder import load_job

_WIDTH = 160
"""Characters of a line without a terminal."""
_NOT_OF_THE_RUN = (
    *("machines.", "plan.", "hydra."),
    *("blocks=", "model.cut=", "engine.lag=", "engine.depth=", "engine.threads=", "engine.wire=", "topology.inner="),
)
"""Beginnings of overrides that only the plan reads, or that it decides."""


def main() -> None:
    """Plan a run as the command line says.

    The process ends with status 0 if there is a plan, and else with one line and status 2.
    """
    composed: list[tuple[DictConfig, list[str]]] = []
    try:
        run_hydra(lambda config: composed.append((config, list(HydraConfig.get().overrides.task))), "plan")
        for config, overrides in composed:  # not within hydra, which would add its own lines to those of an error
            _plan(validate(config, PlanConfig), overrides)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def candidate_table(result: SearchResult) -> Table:
    """Table of predictions, a line for each number of blocks."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "cut" else "right", overflow="fold")
    for candidate in result.candidates:
        table.add_row(
            *(cell(candidate) for cell in _COLUMNS.values()), style="bold" if candidate is result.best else None
        )
    return table


def train_command(candidate: Candidate, overrides: Iterable[str], threads: int, on_nodes: bool = False) -> str:
    """Command that trains ``candidate``.

    Args:
        candidate: One of a plan.
        overrides: Those of the plan.
        threads: Threads per process.
        on_nodes: The plan is for nodes, on each of which the command is given; else for processes wherever they are.
    """
    cut = f"model.cut=[{','.join(map(str, candidate.cut))}]"
    start = ["torchrun", f"--nproc_per_node={candidate.processes}"] if candidate.processes > 1 else ["python"]
    if on_nodes and candidate.nodes > 1:
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=HOST:PORT"]
        each = candidate.processes // candidate.nodes
        start = ["torchrun", f"--nnodes={candidate.nodes}", f"--nproc_per_node={each}", *meeting]
    kept = [override for override in overrides if not override.startswith(_NOT_OF_THE_RUN)]
    options = [f"engine.lag={candidate.lag}", f"engine.depth={candidate.depth}", f"engine.threads={threads}"]
    options += [f"engine.wire={candidate.wire}"] * (candidate.wire != "fp32")
    options += [f"topology.inner={candidate.inner}"] * (candidate.inner != "pipeline")
    words = [*start, "launch/train.py", *kept, f"blocks={candidate.blocks}", cut, *options]
    return " ".join(word if word == cut else shlex.quote(word) for word in words)


def to_json(result: SearchResult) -> dict[str, Any]:
    return {
        "predicted": [asdict(candidate) for candidate in result.candidates],
        "best": result.best.blocks,
        "too_large": [{"blocks": blocks, "memory": memory} for blocks, memory in result.too_large],
    }


def _plan(config: PlanConfig, overrides: Sequence[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    cluster, engine, sync = config.machines.with_measured_links(), config.engine, config.sync
    threads = intra_op_threads(engine.threads, cluster.threads_share)
    run = config.training(threads)
    job = load_job(run)
    local = LocalRun(
        lag=engine.lag,
        depth=engine.depth,
        parts=config.train.accumulate,
        gradients=sync.mode == "gradients",
        every=sync.every,
        delay=sync.delay,
    )
    with console.status("measures") as status:
        profile = profile_model(job, lambda what: status.update(f"measures {what}"))
        profiles = {wire: with_wire(job, profile, wire) for wire in config.wires}
        result = search(profiles, cluster, local, config.replicas, lambda what: status.update(f"plans {what}"))
    if config.plan.out is not None:
        _write(Path(config.plan.out), {"machines": asdict(cluster), "measured": asdict(profile), **to_json(result)})
    alone = sum(layer.forward + layer.backward + layer.update for layer in profile.layers)
    console.print(
        f"Measured here: {len(profile.layers)} layers of {run.model.name}, each alone and as a block pair of "
        f"algorithm={run.algorithm.name}, {_batches(config)}, {threads} threads, {job.device.type}; "
        f"together {1e3 * alone:.3g} ms a batch",
        soft_wrap=True,
    )
    console.print(f"Predicted, not run, for {_describe(cluster)}:", soft_wrap=True)
    console.print(candidate_table(result))
    best = result.best
    if best.processes > 1:
        console.print(_bytes_line(best), soft_wrap=True)
    for reason in reasons(best, local, profile.batch, config.wires):
        console.print(reason, soft_wrap=True)
    for blocks, memory in result.too_large:
        console.print(f"{blocks} blocks: need {memory / 1e9:.3g} GB on one process, too much", soft_wrap=True)
    print(train_command(best, overrides, threads, on_nodes=cluster.nodes is not None))


def _batches(config: PlanConfig) -> str:
    parts, replicas = config.train.accumulate, config.replicas
    shares = f" shared out to {replicas} replicas" if replicas > 1 else ""
    return f"batches of {config.train.batch_size}{shares}{f' in {parts} parts' if parts > 1 else ''}"


def _bytes_line(best: Candidate) -> str:
    """Bytes that a run of ``best`` reports as ``bytes_per_batch``."""
    names = {"up": "up", "down": "down", "sync": "from a copy of each block to the others"}
    sizes = "; ".join(
        f"{names[way]} {', '.join(f'{size / 1e6:.3g}' for size in edges)}"
        for way, edges in best.bytes_per_batch.items()
        if edges
    )
    return f"MB a batch over each edge of the best, engine.wire={best.wire}: {sizes}"


def _describe(cluster: Cluster) -> str:
    memory = "any memory" if cluster.memory_gb is None else f"{cluster.memory_gb:g} GB each"
    links = f"edges of {_link(cluster.bandwidth_gbps, cluster.latency_ms)}"
    on = ""
    if cluster.nodes is not None:
        on = f" on {cluster.nodes} nodes"
        within = _link(cluster.node_bandwidth_gbps, cluster.node_latency_ms)
        links = f"links of {_link(cluster.bandwidth_gbps, cluster.latency_ms)} between nodes, {within} within"
    jitter = f", {100 * cluster.jitter_share:g} % of batches {cluster.jitter_factor:g}x slower in one process"
    return (
        f"up to {cluster.ranks} processes{on} of {cluster.speed:g} times the speed, {memory}, "
        f"{links}{jitter if cluster.jitter_share else ''}"
    )


def _link(bandwidth_gbps: float | None, latency_ms: float) -> str:
    rate = "any bandwidth" if bandwidth_gbps is None else f"{bandwidth_gbps:.3g} Gb/s"
    return f"{rate} and {latency_ms:.3g} ms"


def _write(path: Path, plan: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"plan.out={path}: must be a file that can be written ({error.strerror})") from error


def _counts(counts: Sequence[int]) -> str:
    """``2 2 3``; runs of equal numbers as ``3x20``."""
    runs = ((count, len(list(group))) for count, group in groupby(counts))
    return " ".join(f"{count}x{times}" if times > 2 else " ".join([str(count)] * times) for count, times in runs)


def _pipeline(schedule: str) -> Callable[[Candidate], str]:
    return lambda candidate: "".join(
        f"{one.samples_per_second:,.0f} ({one.microbatches})" for one in candidate.pipelines if one.schedule == schedule
    )


_COLUMNS: dict[str, Callable[[Candidate], str]] = {
    "blocks": lambda candidate: str(candidate.blocks),
    "cut": lambda candidate: _counts(candidate.cut),
    "wire": lambda candidate: candidate.wire,
    "lag": lambda candidate: str(candidate.lag),
    "depth": lambda candidate: str(candidate.depth),
    "samples/s": lambda candidate: f"{candidate.samples_per_second:,.0f}",
    "speed-up": lambda candidate: f"{candidate.speed_up:.2f}",
    "waits": lambda candidate: f"{100 * candidate.wait_fraction:.0f} %",
    "fill [s]": lambda candidate: f"{candidate.fill_seconds:.3g}",
    "memory [GB]": lambda candidate: f"{max(candidate.memory) / 1e9:.3g}",
    "up [MB/s]": lambda candidate: f"{candidate.up / 1e6:.3g}",
    "down [MB/s]": lambda candidate: f"{candidate.down / 1e6:.3g}",
    **{f"{schedule} (m)": _pipeline(schedule) for schedule in COMPARED},
}
