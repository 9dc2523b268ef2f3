"""A plan as a table for people, as JSON, and as a command."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from counterflow.planner.pipelines import SCHEDULES
from counterflow.planner.plan import RunPlan, StepMetrics

_Cell = Callable[[StepMetrics], str]
_OWN = ("machines.", "plan.", "blocks=", "model.cut=", "engine.lag=", "engine.depth=", "engine.threads=", "hydra.")
"""Overrides that are not those of the run, or that the plan says anew."""


def table(plan: RunPlan) -> Table:
    """A line for each number of blocks; all of it is predicted."""
    found = Table(box=box.SIMPLE_HEAD)
    for name in _COLUMNS:
        found.add_column(name, justify="left" if name == "cut" else "right", overflow="fold")
    for row in plan.rows:
        best = row is plan.best
        found.add_row(*(cell(row) for cell in _COLUMNS.values()), style="bold" if best else None)
    return found


def command(row: StepMetrics, overrides: Iterable[str], threads: int) -> str:
    """What starts the run that ``row`` plans; ``overrides`` are those of the plan."""
    cut = "[" + ",".join(map(str, row.cut)) + "]"
    own = [f"blocks={row.blocks}", f"model.cut={cut}", f"engine.lag={row.lag}", f"engine.depth={row.depth}"]
    rest = [override for override in overrides if not override.startswith(_OWN)]
    start = ["torchrun", f"--nproc_per_node={row.blocks}"] if row.blocks > 1 else ["python"]
    words = [*start, "launch/train.py", *rest, *own, f"engine.threads={threads}"]
    return " ".join(word if word == own[1] else shlex.quote(word) for word in words)


def note(plan: RunPlan) -> dict[str, Any]:
    """As JSON holds it."""
    return {
        "predicted": [asdict(row) for row in plan.rows],
        "best": plan.best.blocks,
        "too_large": [{"blocks": blocks, "memory": memory} for blocks, memory in plan.refused],
    }


def _counts(counts: Sequence[int]) -> str:
    """``2 2 3``; runs of equal numbers as ``3x20``."""
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(f"{count}x{times}" if times > 2 else " ".join([str(count)] * times) for count, times in runs)


def _pipeline(schedule: str) -> _Cell:
    def cell(row: StepMetrics) -> str:
        for one in row.pipelines:
            if one.schedule == schedule:
                return f"{one.samples_per_second:,.0f} ({one.microbatches})"
        return ""

    return cell


_COLUMNS: dict[str, _Cell] = {
    "blocks": lambda row: str(row.blocks),
    "cut": lambda row: _counts(row.cut),
    "lag": lambda row: str(row.lag),
    "depth": lambda row: str(row.depth),
    "samples/s": lambda row: f"{row.samples_per_second:,.0f}",
    "speed-up": lambda row: f"{row.speed_up:.2f}",
    "waits": lambda row: f"{100 * row.wait_fraction:.0f} %",
    "fill [s]": lambda row: f"{row.fill_seconds:.3g}",
    "memory [GB]": lambda row: f"{max(row.memory) / 1e9:.3g}",
    "up [MB/s]": lambda row: f"{row.up / 1e6:.3g}",
    "down [MB/s]": lambda row: f"{row.down / 1e6:.3g}",
    **{f"{schedule} (m)": _pipeline(schedule) for schedule in SCHEDULES},
}
