"""One finished run, read from its directory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from counterflow.report import activations, configuration
from counterflow.report.activations import Activations
from counterflow.report.configuration import Configuration

_NEEDED = {
    "algorithm": str,
    "model": str,
    "data": str,
    "blocks": int,
    "seed": int,
    "steps": int,
    "samples_per_second": float,
    "effective_parameters": int,
    "affiliated_parameters": int,
    "device": str,
    "torch_version": str,
}
_OPTIONAL = {
    "ranks": int,
    "git_commit": str,
    "fingerprint": str,
    "experiment": str,
    "scale": str,
    "config_hash": str,
    "group_hash": str,
    "torchvision_version": str,
    "python_version": str,
    "hardware": str,
}
_KINDS = {str: "text", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Summary:
    """``summary.json``. None is what a run did not measure, or what its version did not write down."""

    algorithm: str
    model: str
    data: str
    blocks: int
    seed: int
    steps: int
    samples_per_second: float
    effective_parameters: int
    affiliated_parameters: int
    device: str
    torch_version: str
    ranks: int | None
    git_commit: str | None
    fingerprint: str | None
    experiment: str | None
    scale: str | None
    config_hash: str | None
    group_hash: str | None
    torchvision_version: str | None
    python_version: str | None
    hardware: str | None
    test_accuracy: float | None
    """Between 0 and 1, as all accuracies here."""
    block_accuracy: Sequence[float | None]
    """On test data, bottom to top."""
    test_sequence_accuracy: float | None
    """Share of test sequences that are right at every position; None of other data."""
    validation_accuracy: float | None
    validation_block_accuracy: Sequence[float | None]
    layers: int | None
    """Of the whole network."""
    extra_flops: float | None
    """Of training a sample, as a multiple of what plain backprop needs for the same network."""


@dataclass(frozen=True)
class Run:
    path: Path
    summary: Summary
    configuration: Configuration
    rows: Sequence[Mapping[str, Any]]
    """The lines of ``metrics.jsonl``, each with ``event`` and ``n``."""

    @property
    def experiment(self) -> str | None:
        return self.summary.experiment or self.configuration.get("run.experiment")

    @property
    def scale(self) -> str | None:
        return self.summary.scale or self.configuration.get("scale")

    @cached_property
    def config_hash(self) -> str:
        """Equal for equal configurations and seeds."""
        settings = configuration.settings(self.configuration)
        return self.summary.config_hash or configuration.digest({**settings, "seed": self.summary.seed})

    @cached_property
    def group_hash(self) -> str:
        """Equal for equal configurations, whatever the seed."""
        return self.summary.group_hash or configuration.group_digest(self.configuration)

    @cached_property
    def activations(self) -> Activations | None:
        return activations.read(self.path / "activations.npz")

    @property
    def tests(self) -> int:
        """How often the run looked at test data."""
        return sum(row["event"] == "test" for row in self.rows)

    def column(self, event: str, name: str) -> Mapping[int, Sequence[float | None]]:
        """Figure ``name`` of every block, bottom to top, by batch."""
        rows = [row for row in self.rows if row["event"] == event]
        return {row["n"]: row[name] for row in rows if isinstance(row.get(name), list)}


def read(path: Path) -> Run:
    """The run of a directory; ``ValueError`` of one line that names the file and the key where it is damaged."""
    summary = _summary(path / "summary.json")
    return Run(path, summary, configuration.read(path / "config.yaml"), tuple(_rows(path / "metrics.jsonl")))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text") from error


def _summary(path: Path) -> Summary:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: is no JSON ({error.msg})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be one JSON object")
    fields: dict[str, Any] = {}
    for key, kind in _NEEDED.items():
        if content.get(key) is None:
            raise ValueError(f"{path}: {key} is missing")
        fields[key] = _of_kind(path, key, content[key], kind)
    for key, kind in _OPTIONAL.items():
        fields[key] = None if content.get(key) is None else _of_kind(path, key, content[key], kind)
    if "test_accuracy" not in content:
        raise ValueError(f"{path}: test_accuracy is missing")
    for key in ("test_accuracy", "test_sequence_accuracy", "validation_accuracy"):
        fields[key] = _accuracy(path, key, content.get(key))
    for key in ("block_accuracy", "validation_block_accuracy"):
        fields[key] = tuple(_accuracy(path, key, value) for value in _list(path, key, content.get(key)))
    cut = [_of_kind(path, "cut", count, int) for count in _list(path, "cut", content.get("cut"))]
    return Summary(**fields, layers=sum(cut) or None, extra_flops=_extra(path, content.get("flops")))


def _of_kind(path: Path, key: str, value: Any, kind: type) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is float and not isfinite(value)):
        raise ValueError(f"{path}: {key}={value}: must be {_KINDS[kind]}")
    return value


def _list(path: Path, key: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{path}: {key}={value}: must be a list")
    return value


def _accuracy(path: Path, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if not 0 <= _of_kind(path, key, value, float) <= 1:
        raise ValueError(f"{path}: {key}={value}: must be between 0 and 1")
    return float(value)


def _extra(path: Path, flops: Any) -> float | None:
    if flops is None:
        return None
    if not isinstance(flops, dict):
        raise ValueError(f"{path}: flops={flops}: must be an object")
    extra, training = flops.get("extra"), flops.get("training")
    if extra is None or training is None:
        return None
    if not _of_kind(path, "flops.training", training, float) > 0:
        raise ValueError(f"{path}: flops.training={training}: must be greater than 0")
    return float(_of_kind(path, "flops.extra", extra, float) / training)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number}: is no JSON ({error.msg})") from error
        if not (isinstance(row, dict) and isinstance(row.get("event"), str) and isinstance(row.get("n"), int)):
            raise ValueError(f"{path}: line {number}: must be an object with event and n")
        yield row
