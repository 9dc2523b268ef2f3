"""Command line of ``launch/bench.py``: runs suites and writes their tables, ``bench.json`` and charts."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from counterflow.bench.cases import CaseFactory
from counterflow.bench.emulated_suites import (
    draw_emulated,
    draw_jitter,
    draw_scaling,
    draw_slowlink,
    measure_emulated,
    measure_jitter,
    measure_scaling,
    measure_slowlink,
)
from counterflow.bench.loader_suite import measure_loader
from counterflow.bench.options import BenchContext, BenchOptions
from counterflow.bench.race_suite import draw_time_to_accuracy, measure_time_to_accuracy
from counterflow.bench.replica_suite import draw_replicas, measure_replicas
from counterflow.bench.results import SuiteResult, goal_lines, markdown, terminal_table
from counterflow.bench.training_suites import (
    draw_cpu2,
    draw_flops,
    draw_memory,
    measure_cpu2,
    measure_flops,
    measure_memory,
    measure_timeline,
)
from counterflow.bench.transport_suite import draw_transport, measure_transport
from counterflow.bench.wan_suite import draw_wan, measure_wan
from counterflow.bench.workers import WorkerError
from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.cli.console import EXIT_FAILURE, EXIT_USAGE
from counterflow.cli.hydra_app import run_hydra, validate
from counterflow.metrics import provenance

Measure = Callable[[BenchContext], SuiteResult]
Draw = Callable[[Mapping[str, Any], Path], None]
"""Draws what `SuiteResult.to_json` returned into a folder."""

SUITES: Mapping[str, tuple[Measure, Draw | None]] = {
    "cpu2": (measure_cpu2, draw_cpu2),
    "emulated": (measure_emulated, draw_emulated),
    "slowlink": (measure_slowlink, draw_slowlink),
    "jitter": (measure_jitter, draw_jitter),
    "transport": (measure_transport, draw_transport),
    "memory": (measure_memory, draw_memory),
    "scaling": (measure_scaling, draw_scaling),
    "timeline": (measure_timeline, None),
    "flops": (measure_flops, draw_flops),
    "loader": (measure_loader, None),
    "replicas": (measure_replicas, draw_replicas),
    "time_to_accuracy": (measure_time_to_accuracy, draw_time_to_accuracy),
    "wan": (measure_wan, draw_wan),
}


def main() -> None:
    """Run the command line and exit with status 0 if every suite was measured, even if it missed its goals."""
    composed: list[DictConfig] = []
    try:
        run_hydra(composed.append, "bench")
        # Outside of hydra's application, which adds lines to errors. Hydra also composes the cases.
        for config in composed:
            run_suites(validate(config, BenchOptions))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)


def run_suites(options: BenchOptions) -> None:
    """Measure, and write ``bench.json``, an object per suite, and ``bench.md``, the same as tables.

    Suites that earlier calls measured stay in both files.

    Raises:
        ValueError: ``out`` cannot be used.
        WorkerError: A measurement failed.
    """
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        earlier = (out / "bench.json").read_text() if (out / "bench.json").exists() else "[]"
        suites = {suite["suite"]: suite for suite in json.loads(earlier)}
    except OSError as error:
        raise ValueError(f"out={out}: must be a folder that can be written ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out={out}: holds a bench.json that is none") from error
    console = Console(width=max(Console().width, 160))  # a line wrapped by the terminal shows more than a truncated one
    for name in options.suites:
        measure, draw = SUITES[name]
        start = time.monotonic()
        with TemporaryDirectory(prefix="counterflow-bench-") as folder, console.status(name) as status:
            show = status.update if console.is_terminal else partial(print, file=sys.stderr, flush=True)
            log = partial(_log, show, name)
            result = measure(BenchContext(options, CaseFactory(Path(folder)), out, log))
        # With the command, versions and hardware needed to judge it.
        suites[name] = suite = {
            **result.to_json(),
            "seconds": time.monotonic() - start,
            "command": " ".join(["python", "launch/bench.py", *sys.argv[1:]]),
            "hardware": provenance.hardware(torch.device("cpu")),
            "cores": len(os.sched_getaffinity(0)),
            "torch_version": str(torch.__version__),
            "git_commit": provenance.git_commit(),
        }
        atomic_write(out / "bench.json", (json.dumps(list(suites.values()), indent=2) + "\n").encode())
        atomic_write(out / "bench.md", markdown(list(suites.values())).encode())
        if draw is not None:
            draw(suite, out)
        console.print(terminal_table(suite))
        console.print(*goal_lines(suite), sep="\n", soft_wrap=True)
        console.print(f"{name}: {suite['seconds']:.0f} s, {out / 'bench.md'}", soft_wrap=True)


def _log(show: Callable[[str], None], suite: str, text: str) -> None:
    show(f"{suite}: {text}")
