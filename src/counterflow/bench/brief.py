"""What a suite is told: the options, where presets lie, and whom to keep informed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from counterflow.bench.options import BenchOptions


@dataclass(frozen=True)
class Brief:
    options: BenchOptions
    conf: Path
    """The folder of the hydra configuration."""
    out: Path
    """Where figures go."""
    folder: Path
    """Where a suite may leave files for the time of its run."""
    log: Callable[[str], None]
    """Progress, a line at a time."""
