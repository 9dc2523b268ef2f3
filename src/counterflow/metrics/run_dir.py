"""Run directory: its lock, its files, and the run that it already holds."""

import fcntl
import json
import os
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.metrics.block_metrics import StepMetrics, score
from counterflow.metrics.provenance import config_hash, settings

_MAX_KEYS = 3
"""Number of keys named where two configurations differ."""


class Found(Enum):
    """State of the run that a directory holds."""

    NOTHING = auto()
    FINISHED = auto()
    INTERRUPTED = auto()
    RUNNING = auto()
    """Another process writes it."""


class InUseError(ValueError):
    """Another process writes the run directory."""


class FinishedError(ValueError):
    """The run has finished before."""


class RunDirectory:
    """Writes ``config.yaml``, ``metrics.jsonl`` and, at the end of a run, ``summary.json``.

    The constructor looks at the directory once: it sets `found` and locks a directory that exists, so that no other
    process changes it. Nothing is created or written before `begin`. Close the object to release the lock.
    """

    def __init__(self, path: Path, config: Any) -> None:
        """Args:
            path: the directory, which need not exist.
            config: configuration of the run, a dataclass or a dictionary.

        Raises:
            ValueError: ``path`` holds a run of another configuration, or one whose configuration cannot be read.
        """
        self.path = path
        self.seconds = 0.0
        """Seconds that the run had taken when it was interrupted; set by `begin`."""
        self._config = config
        self._unwritten = b""
        self._metrics: IO[bytes] | None = None
        try:
            self.found = self._look()
        except BaseException:
            self.close()
            raise

    def begin(self, batches: int) -> None:
        """Create or open the files, to continue after ``batches`` training batches; later rows are removed.

        Raises:
            InUseError: another process writes the run, or has finished it since the constructor looked.
            ValueError: the directory cannot be written.
        """
        try:
            if self._metrics is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self._open("a+b")
            if self._metrics is None or (self.path / "summary.json").exists():
                self.close()
                raise InUseError(f"run.dir={self.path}: another process came first")
            self._truncate(batches)
            atomic_write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self._config)).encode())
        except OSError as error:
            raise ValueError(
                f"run.dir={self.path}: must be a folder that can be written ({error.strerror or error})"
            ) from error

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def write(self, row: StepMetrics) -> None:
        """Append a row to the metrics. After an ``OSError`` the row is kept, and written with the next one."""
        self._unwritten += row.to_json().encode() + b"\n"
        self._flush()

    def validation_scores(self) -> dict[int, float]:
        """`score` of every evaluation of held-out data so far, by the training batches before it."""
        rows = map(json.loads, (self.path / "metrics.jsonl").read_text().splitlines())
        found = {
            row["n"] + 1: score({name: row[name][-1] for name in ("accuracy", "bits_per_byte") if name in row})
            for row in rows
            if row["event"] == "validation"
        }
        return {batches: value for batches, value in found.items() if value is not None}

    def sync(self) -> None:
        """Wait until the metrics are on the disk. Raises ``OSError``."""
        assert self._metrics is not None, "begin comes first"
        os.fsync(self._metrics.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which marks the run as finished. Raises ``OSError``."""
        self._flush()
        atomic_write(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def _look(self) -> Found:
        path = self.path
        metrics = path / "metrics.jsonl"
        if metrics.exists():
            self._open("a+b" if os.access(metrics, os.W_OK) else "rb")
            if self._metrics is None:
                return Found.RUNNING
        # Empty metrics alone are of a process that ended before it wrote anything.
        written = metrics.exists() and metrics.stat().st_size > 0
        if not (written or (path / "config.yaml").exists() or (path / "summary.json").exists()):
            return Found.NOTHING
        try:
            there = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        except (OSError, YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"run.dir={path}: holds a run without a config.yaml that can be read") from error
        if not isinstance(there, dict):
            raise ValueError(f"run.dir={path}: holds a run whose config.yaml is none")
        if config_hash(there) != config_hash(self._config):
            difference = config_diff(settings(there), settings(self._config))
            raise ValueError(f"run.dir={path}: holds a run of another configuration: {difference}")
        return Found.FINISHED if (path / "summary.json").exists() else Found.INTERRUPTED

    def _open(self, mode: str) -> None:
        """Open and lock the metrics, unless another process has locked them.

        The system releases the lock when the process dies, however it dies.
        """
        file: IO[bytes] = (self.path / "metrics.jsonl").open(mode, buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return
        except OSError:  # a file system without locks
            pass
        self._metrics = file

    def _truncate(self, batches: int) -> None:
        """Cut the metrics before the first row of a later batch, or the first incomplete row."""
        assert self._metrics is not None
        self._metrics.seek(0)
        end = 0
        for line in self._metrics.readlines():
            try:
                row = json.loads(line if line.endswith(b"\n") else b"")
                later, seconds = row["n"] >= batches, row["seconds"]
            except (ValueError, TypeError, KeyError):  # an incomplete row, or no row
                break
            if later:
                break
            end += len(line)
            self.seconds = max(self.seconds, seconds)
        self._metrics.truncate(end)

    def _flush(self) -> None:
        assert self._metrics is not None, "begin comes first"
        while self._unwritten:
            self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Names the keys in which two configurations differ, with both values."""
    keys = [key for key in {**new, **old} if old.get(key, ...) != new.get(key, ...)]
    named = [f"{key}={old.get(key, 'unknown')} there, {new.get(key, 'unknown')} here" for key in keys[:_MAX_KEYS]]
    return "; ".join(named + ["and more"] * (len(keys) > _MAX_KEYS))
