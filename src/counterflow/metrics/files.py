"""The files of a run directory."""

import fcntl
import json
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.utils.tensorboard import SummaryWriter
from yaml import YAMLError

from counterflow.config import TrainConfig
from counterflow.metrics.provenance import config_hash, settings
from counterflow.metrics.record import Row

_SHOWN = 3
"""Keys named where two configurations differ."""


class Found(Enum):
    """What a directory holds of a run."""

    NOTHING = auto()
    FINISHED = auto()
    INTERRUPTED = auto()
    RUNNING = auto()
    """Another process writes it."""


class InUseError(ValueError):
    """Another process came first."""


class RunDirectory:
    """Writes ``config.yaml``, ``metrics.jsonl``, TensorBoard events and ``summary.json``, which is the last.

    ``ValueError`` where ``path`` already holds a run; with ``redo`` an interrupted one is begun anew, and
    `InUseError` is raised where another process writes it, or finished it meanwhile.
    """

    def __init__(self, path: Path, config: TrainConfig, redo: bool = False) -> None:
        if not redo and any((path / name).exists() for name in ("metrics.jsonl", "summary.json")):
            raise ValueError(f"run.dir={path}: already holds a run, choose another one or remove it")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.dir={path}: must be a folder that can be made ({error.strerror})") from error
        self.path = path
        self._metrics = (path / "metrics.jsonl").open("a", buffering=1)
        if not _lock(self._metrics) or (path / "summary.json").exists():
            self._metrics.close()
            raise InUseError(f"run.dir={path}: another process came first")
        self._metrics.truncate(0)
        for leftover in path.glob("events.out.tfevents.*"):
            leftover.unlink()
        _write_whole(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
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
        """The mark of a finished run."""
        _write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def find(path: Path, config: TrainConfig) -> Found:
    """What is left of an earlier run of ``config``. ``ValueError`` of one line where ``path`` holds another's."""
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        with metrics.open() as file:
            if not _lock(file):
                return Found.RUNNING
    # Empty metrics alone are of a process that did not come further, or begins just now.
    written = metrics.exists() and metrics.stat().st_size > 0
    if not (written or (path / "config.yaml").exists() or (path / "summary.json").exists()):
        return Found.NOTHING
    try:
        there = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"run.dir={path}: holds a run without a config.yaml that can be read") from error
    if not isinstance(there, dict):
        raise ValueError(f"run.dir={path}: holds a run whose config.yaml is none")
    if config_hash(there) != config_hash(config):
        raise ValueError(f"run.dir={path}: holds a run of another configuration: {_difference(there, config)}")
    return Found.FINISHED if (path / "summary.json").exists() else Found.INTERRUPTED


def _difference(there: Mapping[Any, Any], config: TrainConfig) -> str:
    old, new = settings(there), settings(config)
    keys = [key for key in {**new, **old} if old.get(key, ...) != new.get(key, ...)]
    named = [f"{key}={old.get(key, 'unknown')} there, {new.get(key, 'unknown')} here" for key in keys[:_SHOWN]]
    return "; ".join(named + ["and more"] * (len(keys) > _SHOWN))


def _write_whole(path: Path, text: str) -> None:
    """The file appears as a whole or not at all, whenever the process ends."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _lock(file: TextIO) -> bool:
    """Keep ``file`` to this process until it is closed; False where another one has it.

    Taken back by the system when a process dies, however it dies.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then nobody has one
        return True
    return True
