"""The files of a run directory."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from counterflow.config import TrainConfig
from counterflow.metrics.record import Row


class RunDirectory:
    """Writes ``config.yaml``, ``metrics.jsonl``, TensorBoard events and ``summary.json``.

    ``ValueError`` where ``path`` already holds a run.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        if (path / "metrics.jsonl").exists():
            raise ValueError(f"run.dir={path}: already holds a run, choose another one or remove it")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.dir={path}: must be a folder that can be made ({error.strerror})") from error
        self.path = path
        (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        self._metrics = (path / "metrics.jsonl").open("w", buffering=1)
        self._events = SummaryWriter(str(path))

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._metrics.close()
        self._events.close()

    def write(self, row: Row) -> None:
        self._metrics.write(row.to_json() + "\n")
        for name, value in row.system.items():
            self._events.add_scalar(f"{row.event}/{name}", value, row.n)
        for record in row.records:
            for name, value in record.figures.items():
                self._events.add_scalar(f"{row.event}/{name}/block{record.block}", value, row.n)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        (self.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def git_commit() -> str | None:
    """The commit of this source, with ``-dirty`` after changes; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
