"""The files of a run directory."""

import fcntl
import json
import os
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.utils.tensorboard import SummaryWriter
from yaml import YAMLError

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.config import TrainConfig
from counterflow.metrics.block_metrics import StepMetrics
from counterflow.metrics.provenance import config_hash, settings

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


class FinishedError(ValueError):
    """The run has finished before."""


class RunDirectory:
    """Writes ``config.yaml``, ``metrics.jsonl``, TensorBoard events and ``summary.json``, which is the last.

    Keeps the directory to this process. ``ValueError`` where it cannot be made, `InUseError` where another process
    writes it, or finished the run meanwhile.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._metrics = (path / "metrics.jsonl").open("a+b", buffering=0)
        except OSError as error:
            raise ValueError(f"run.dir={path}: must be a folder that can be written ({error.strerror})") from error
        self.path = path
        self.seconds = 0.0
        """That the run had taken when it was interrupted."""
        self._unwritten = b""
        self._events: SummaryWriter | None = None
        if not _lock(self._metrics) or (path / "summary.json").exists():
            self._metrics.close()
            raise InUseError(f"run.dir={path}: another process came first")

    def begin(self, config: TrainConfig, batches: int) -> None:
        """Go on after so many batches: what was written about later ones is written again. ``ValueError`` where the
        directory cannot be written."""
        try:
            self._keep(batches)
            if batches == 0:
                for leftover in self.path.glob("events.out.tfevents.*"):
                    leftover.unlink()
            atomic_write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
            self._events = SummaryWriter(str(self.path), purge_step=batches or None)
        except OSError as error:
            raise ValueError(f"run.dir={self.path}: must be a folder that can be written ({error.strerror})") from error

    def _keep(self, batches: int) -> None:
        """Cut the metrics before the first row of a later batch, or the first one that was not written to its end."""
        self._metrics.seek(0)
        end = 0
        for line in self._metrics.readlines():
            row = _row(line)
            if row is None or row["n"] >= batches:
                break
            end += len(line)
            self.seconds = max(self.seconds, row["seconds"])
        self._metrics.truncate(end)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._metrics.close()
        if self._events is not None:
            self._events.close()

    def write(self, row: StepMetrics) -> None:
        """Raises ``OSError``, after which the row waits to be written with the next one."""
        self._unwritten += row.to_json().encode() + b"\n"
        self._flush()
        assert self._events is not None, "the directory was begun"
        for name, value in row.system.items():
            self._events.add_scalar(f"{row.event}/{name}", value, row.n)
        for record in row.records:
            for name, value in record.figures.items():
                self._events.add_scalar(f"{row.event}/{name}/block{record.block}", value, row.n)

    def sync(self) -> None:
        """Wait until the disk has the metrics. Raises ``OSError``."""
        os.fsync(self._metrics.fileno())

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """The mark of a finished run. ``OSError`` where not all of it could be written."""
        self._flush()
        atomic_write(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def _flush(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("n"), int) and "seconds" in row else None


def inspect_run_dir(path: Path, config: TrainConfig) -> Found:
    """What is left of an earlier run of ``config``. ``ValueError`` of one line where ``path`` holds another's."""
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        with metrics.open("rb") as file:
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
        raise ValueError(
            f"run.dir={path}: holds a run of another configuration: {config_diff(settings(there), settings(config))}"
        )
    return Found.FINISHED if (path / "summary.json").exists() else Found.INTERRUPTED


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys in which two configurations differ, with both values."""
    keys = [key for key in {**new, **old} if old.get(key, ...) != new.get(key, ...)]
    named = [f"{key}={old.get(key, 'unknown')} there, {new.get(key, 'unknown')} here" for key in keys[:_SHOWN]]
    return "; ".join(named + ["and more"] * (len(keys) > _SHOWN))


def _lock(file: IO[bytes]) -> bool:
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
