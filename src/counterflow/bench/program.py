"""The command line of ``launch/bench.py``: suites, their tables, ``bench.json``, figures."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from counterflow.bench.brief import Brief
from counterflow.bench.crew import CrewError
from counterflow.bench.options import BenchOptions
from counterflow.bench.row import Result
from counterflow.bench.suites import SUITES
from counterflow.bench.table import goals, markdown, table
from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.cli.hydra_app import check, run_hydra
from counterflow.metrics import provenance

_USAGE_ERROR = 2
_FAILED = 1
_WIDTH = 160
"""Letters of a table, at least: a line that a terminal breaks tells more than one that is cut."""


def main(conf: Path) -> None:
    """Ends the process with status 0 if every suite was measured, whether or not it reached its goals."""
    chosen: list[DictConfig] = []
    try:
        run_hydra(conf, chosen.append, "bench")
        # Beside hydra's application, which adds lines to an error's; and contenders are composed by hydra too.
        for composed in chosen:
            bench(check(composed, BenchOptions), conf)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_USAGE_ERROR)
    except CrewError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_FAILED)


def bench(options: BenchOptions, conf: Path) -> None:
    """Measure, and write ``bench.json``, an object for each suite, and ``bench.md``, the same as tables.

    Suites that earlier calls measured stay in both.
    """
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = _known(out / "bench.json")
    except OSError as error:
        raise ValueError(f"out={out}: must be a folder that can be written ({error.strerror})") from error
    console = Console(width=max(Console().width, _WIDTH))
    for name in options.suites:
        start = time.monotonic()
        with TemporaryDirectory(prefix="counterflow-bench-") as folder, console.status(name) as status:
            log = _teller(name, status.update if console.is_terminal else _print_to_stderr)
            result = SUITES[name].measure(Brief(options, conf, out, Path(folder), log))
        note = _signed(result, time.monotonic() - start)
        known[name] = note
        atomic_write(out / "bench.json", (json.dumps(list(known.values()), indent=2) + "\n").encode())
        atomic_write(out / "bench.md", markdown(list(known.values())).encode())
        SUITES[name].draw(note, out)
        console.print(table(note))
        console.print(*goals(note), sep="\n", soft_wrap=True)
        console.print(f"{name}: {note['seconds']:.0f} s, {out / 'bench.md'}", soft_wrap=True)


def _teller(name: str, show: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: show(f"{name}: {text}")


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _known(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return {note["suite"]: note for note in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out={path.parent}: holds a bench.json that is none") from error


def _signed(result: Result, seconds: float) -> dict[str, Any]:
    """With what another person needs to judge it."""
    return {
        **result.note(),
        "seconds": seconds,
        "command": " ".join(["python", "launch/bench.py", *sys.argv[1:]]),
        "hardware": provenance.hardware(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)),
        "torch_version": str(torch.__version__),
        "git_commit": provenance.git_commit(),
    }
