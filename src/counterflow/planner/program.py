"""The command line of ``launch/plan.py``: measures, plans, tells."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from counterflow.cli.hydra_app import check, run_hydra
from counterflow.engine.job import Job, build_job
from counterflow.engine.threads import intra_op_threads
from counterflow.planner.machines import Machines
from counterflow.planner.measure import measure
from counterflow.planner.network import Network
from counterflow.planner.options import PlanConfig
from counterflow.planner.plan import RunPlan, plan
from counterflow.planner.sheet import command, note, table

_USAGE_ERROR = 2
_WIDE = 160
"""Characters of a line, where no terminal says how many."""


def main(conf: Path) -> None:
    """Ends the process with status 0 if there is a plan, and else with one line and status 2."""
    chosen: list[tuple[DictConfig, list[str]]] = []
    try:
        run_hydra(conf, lambda composed: chosen.append((composed, list(HydraConfig.get().overrides.task))), "plan")
        for composed, overrides in chosen:  # beside hydra, which would add lines of its own to an error's
            _tell(check(composed, PlanConfig), overrides)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_USAGE_ERROR)


def _tell(config: PlanConfig, overrides: Sequence[str]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    threads = intra_op_threads(config.engine.threads, config.machines.ranks)
    job = build_job(config.training(threads), 1)
    with console.status("measures") as status:
        network = measure(job, lambda what: status.update(f"measures {what}"))
        machines = Machines.of(config.machines)
        found = plan(
            network, machines, config.engine.lag, config.engine.depth, lambda what: status.update(f"plans {what}")
        )
    if config.plan.out is not None:
        _write(Path(config.plan.out), config, network, found)
    console.print(_measured(job, network, threads), soft_wrap=True)
    console.print(f"Predicted, not run, for {_machines(config)}:", soft_wrap=True)
    console.print(table(found))
    for blocks, memory in found.refused:
        console.print(f"{blocks} blocks: need {memory / 1e9:.3g} GB on one process, too much", soft_wrap=True)
    print(command(found.best, overrides, threads))


def _measured(job: Job, network: Network, threads: int) -> str:
    alone = sum(layer.forward + layer.backward + layer.update for layer in network.layers)
    return (
        f"Measured here: {len(network.layers)} layers of {job.config.model.name}, each alone and as a block pair of "
        f"algorithm={job.config.algorithm.name}, batches of {network.batch}, {threads} threads, {job.device.type}; "
        f"together {1e3 * alone:.3g} ms a batch"
    )


def _machines(config: PlanConfig) -> str:
    machines = config.machines
    memory = "any memory" if machines.memory_gb is None else f"{machines.memory_gb:g} GB each"
    rate = "any bandwidth" if machines.bandwidth_gbps is None else f"{machines.bandwidth_gbps:g} Gb/s"
    jitter = f", {100 * machines.jitter_share:g} % of batches {machines.jitter_factor:g}x slower in one process"
    return (
        f"up to {machines.ranks} processes of {machines.speed:g} times the speed, {memory}, "
        f"edges of {rate} and {machines.latency_ms:g} ms{jitter if machines.jitter_share else ''}"
    )


def _write(path: Path, config: PlanConfig, network: Network, found: RunPlan) -> None:
    whole: dict[str, Any] = {"machines": asdict(config.machines), "measured": asdict(network), **note(found)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"plan.out={path}: must be a file that can be written ({error.strerror})") from error
