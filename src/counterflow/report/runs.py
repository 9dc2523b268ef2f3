"""Finished runs, read from their directories."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from counterflow.metrics import provenance

_MARKS = ("summary.json", "metrics.jsonl")
_KINDS = {str: "text", int: "a whole number", float: "a number", dict: "an object"}
_FIELDS: Mapping[str, Any] = {
    "algorithm": str,
    "model": str,
    "data": str,
    "blocks": int,
    "seed": int,
    "steps": int,
    "samples_per_second": float,
    "tokens_per_second": float | None,  # of text, like bits
    "effective_parameters": int,
    "affiliated_parameters": int,
    "device": str,
    "torch_version": str,
    "ranks": int | None,
    "git_commit": str | None,
    "fingerprint": str | None,
    "experiment": str | None,
    "scale": str | None,
    "config_hash": str | None,
    "group_hash": str | None,
    "torchvision_version": str | None,
    "python_version": str | None,
    "hardware": str | None,
    "test_accuracy": float | None,  # between 0 and 1, like all accuracies here
    "block_accuracy": Sequence[float | None],  # on test data, bottom to top
    "test_sequence_accuracy": float | None,  # share of test sequences that are right at every position
    "test_tta_accuracy": float | None,  # of the average over views of each test image
    "block_tta_accuracy": Sequence[float | None],
    "validation_tta_accuracy": float | None,
    "validation_accuracy": float | None,
    "validation_block_accuracy": Sequence[float | None],
    "bits_per_byte": float | None,  # on test data
    "block_bits_per_byte": Sequence[float | None],
    "block_bits_by_position": Sequence[Sequence[float] | None],  # in the parts of a window, see metrics.positions
    "validation_bits_per_byte": float | None,
    "validation_block_bits_per_byte": Sequence[float | None],
    "validation_block_bits_by_position": Sequence[Sequence[float] | None],
    "cut": Sequence[int],  # layers of every block
    "flops": dict | None,  # of training a sample
    "exits": Sequence[dict[str, Any]],  # of every block that predicts by itself, bottom to top
}
"""Keys of ``summary.json``. None is a value that the run did not measure, or that its version did not write down."""


_EXIT_FIELDS: Mapping[str, Any] = {
    "block": int,
    "flops": float,  # of predicting a sample by the network up to this block
    "test_accuracy": float | None,
    "validation_accuracy": float | None,
}


@dataclass(frozen=True)
class Activations:
    """Outputs of the blocks for test samples."""

    blocks: Sequence[NDArray[np.float64]]
    """Output of every block, bottom to top, ``[M, d_k]``; finite."""
    labels: NDArray[np.int64]
    """``[M]``, at least two classes."""
    inputs: NDArray[np.float64] | None = None
    """The samples, ``[M, d_0]``, if they are images."""


@dataclass(frozen=True)
class Run:
    path: Path
    summary: Mapping[str, Any]
    """Checked content of ``summary.json``, and two keys made of it.

    ``layers`` is the number of layers of the network. ``extra_flops`` are the extra FLOPs of training a sample, divided
    by those that backprop needs for the same network. Experiment, scale and hashes that ``summary.json`` lacks are
    those of the configuration.
    """
    settings: Mapping[str, Any]
    """Options that can change the result, but for the seed: ``algorithm.latent.dim`` -> 512. Lists are values."""
    rows: Sequence[Mapping[str, Any]]
    """Lines of ``metrics.jsonl``, each with ``event`` and ``n``."""

    @cached_property
    def activations(self) -> Activations | None:
        return read_activations(self.path / "activations.npz")

    @property
    def tests(self) -> int:
        """Number of evaluations on test data."""
        return sum(row["event"] == "test" for row in self.rows)

    def seconds(self, event: str) -> pd.Series:
        """Seconds since the start of the run by batch, of the rows of ``event`` that have them."""
        rows = {row["n"]: row["seconds"] for row in self.rows if row["event"] == event and "seconds" in row}
        return pd.Series(rows, dtype=float)

    def metric(self, event: str, name: str) -> pd.DataFrame:
        """Metric ``name``: a row a batch, a column a block, bottom to top; NaN where a block has no value."""
        rows = {row["n"]: row[name] for row in self.rows if row["event"] == event and isinstance(row.get(name), list)}
        return pd.DataFrame(list(rows.values()), index=list(rows), dtype=float)


def find_runs(paths: Iterable[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Finished and unfinished runs below ``paths``, each once, in the order of their names.

    A run without ``summary.json`` is unfinished.

    Raises:
        ValueError: If there is no run below one of the paths.
    """
    below = {path: sorted({mark.parent for name in _MARKS for mark in path.rglob(name)}) for path in paths}
    for path, runs in below.items():
        if not runs:
            problem = f"holds no run (no {' or '.join(_MARKS)} at any depth)" if path.is_dir() else "is no directory"
            raise ValueError(f"{path}: {problem}")
    # of two names of a run, the first counts
    ordered = sorted({run.resolve(): run for runs in reversed(below.values()) for run in reversed(runs)}.values())
    finished = [run for run in ordered if (run / "summary.json").exists()]
    return finished, [run for run in ordered if run not in finished]


def read_run(path: Path) -> Run:
    """Read the run of a directory.

    Raises:
        ValueError: If a file is missing or damaged: one line that names the file and the key.
    """
    options = _config(path / "config.yaml")
    of_run = options.get("run")
    settings = {key: value for key, value in provenance.settings(options).items() if key != "seed"}
    defaults = {
        "experiment": of_run.get("experiment") if isinstance(of_run, dict) else None,
        "scale": options.get("scale"),
        "config_hash": provenance.config_hash(options),
        # runs that differ in their threads differ in the last bits alone
        "group_hash": provenance.group_hash({key: settings[key] for key in settings if key != "engine.threads"}),
    }
    summary = {key: value or defaults.get(key, value) for key, value in _summary(path / "summary.json").items()}
    return Run(path, summary, settings, tuple(_rows(path / "metrics.jsonl")))


def read_activations(path: Path) -> Activations | None:
    """Read and check activations; None if there is no such file.

    Raises:
        ValueError: If the file is damaged: one line that names it.
    """
    if not path.exists():
        return None
    try:
        with np.load(path) as content:
            labels = np.asarray(content["labels"], dtype=np.int64)
            count = len([name for name in content.files if name.startswith("block_")])
            blocks = tuple(np.asarray(content[f"block_{k}"], dtype=np.float64) for k in range(1, count + 1))
            inputs = np.asarray(content["inputs"], dtype=np.float64) if "inputs" in content.files else None
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path}: must hold labels and block_1 .. block_N") from error
    arrays = blocks if inputs is None else (inputs, *blocks)
    if not blocks or labels.ndim != 1 or any(array.ndim != 2 or len(array) != len(labels) for array in arrays):
        raise ValueError(f"{path}: must hold labels [M] and block_1 .. block_N, each [M, d]")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{path}: labels must be of at least two classes")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{path}: activations must be finite")
    return Activations(blocks, labels, inputs)


def _config(path: Path) -> Mapping[Any, Any]:
    try:
        options = OmegaConf.to_container(OmegaConf.create(_text(path)))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: is no YAML") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: must hold named options")
    return options


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text") from error


def _json(path: Path, text: str, line: int = 1) -> Any:
    """Content of ``text``, which begins at ``line`` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {line + error.lineno - 1}: is no JSON ({error.msg})") from error


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        row = _json(path, line, number)
        if not (isinstance(row, dict) and isinstance(row.get("event"), str) and isinstance(row.get("n"), int)):
            raise ValueError(f"{path}: line {number}: must be an object with event and n")
        yield row


def _summary(path: Path) -> dict[str, Any]:
    content = _json(path, _text(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be one JSON object")
    if "test_accuracy" not in content:  # a run that did not test says so with null
        raise ValueError(f"{path}: test_accuracy is missing")
    summary = {key: _checked(path, key, content.get(key), kind) for key, kind in _FIELDS.items()}
    flops = summary["flops"] or {}
    extra, training = (_checked(path, f"flops.{key}", flops.get(key), float | None) for key in ("extra", "training"))
    if training is not None and training <= 0:
        raise ValueError(f"{path}: flops.training={training}: must be greater than 0")
    extra_flops = None if extra is None or training is None else extra / training
    exits = [
        {key: _checked(path, f"exits.{key}", one.get(key), kind) for key, kind in _EXIT_FIELDS.items()}
        for one in summary["exits"]
    ]
    return {**summary, "exits": exits, "layers": sum(summary["cut"]) or None, "extra_flops": extra_flops}


def _checked(path: Path, key: str, value: Any, annotation: Any) -> Any:
    """``value`` if it fits the annotation of its field; an absent list is empty."""
    if get_origin(annotation) is Sequence:
        if not isinstance(value, list | None):
            raise ValueError(f"{path}: {key}={value}: must be a list")
        return tuple(_checked(path, key, entry, *get_args(annotation)) for entry in value or [])
    kind, *optional = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    if value is None:
        if NoneType not in optional:
            raise ValueError(f"{path}: {key} is missing")
        return None
    if get_origin(kind) is Sequence:
        return _checked(path, key, value, kind)
    kind = get_origin(kind) or kind
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is float and not isfinite(value)):
        raise ValueError(f"{path}: {key}={value}: must be {_KINDS[kind]}")
    if key.endswith("accuracy") and not 0 <= value <= 1:
        raise ValueError(f"{path}: {key}={value}: must be between 0 and 1")
    return value
