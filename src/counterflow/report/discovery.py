"""Run directories under the paths that a user names."""

from collections.abc import Iterable, Sequence
from pathlib import Path

_MARKS = ("summary.json", "metrics.jsonl")


def find(paths: Iterable[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Finished and unfinished runs, each once, in the order of their names; ``ValueError`` for a path without any.

    A run is unfinished while it has no ``summary.json``.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path}: is no directory")
        runs = {mark.parent for name in _MARKS for mark in path.rglob(name)}
        if not runs:
            raise ValueError(f"{path}: holds no run (no {' or '.join(_MARKS)} at any depth)")
        for run in sorted(runs):
            found.setdefault(run.resolve(), run)
    runs_in_order = sorted(found.values())
    finished = [run for run in runs_in_order if (run / "summary.json").exists()]
    return finished, [run for run in runs_in_order if run not in finished]
