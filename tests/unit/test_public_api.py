"""The public names: all there, and loaded only when used."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest

import counterflow as cf
from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from counterflow.trainer.trainer import Trainer

SOURCE = Path(cf.__file__).read_text()


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    assert all(hasattr(cf, name) for name in cf.__all__)
    declared = set(re.findall(r"^    from \S+ import (\w+) as \1$", SOURCE, re.MULTILINE))
    assert declared == set(cf.__all__)
    assert set(cf.__all__) <= set(dir(cf))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        cf.Nothing  # noqa: B018
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cf.__version__)


def test_the_import_loads_neither_torch_nor_hydra_and_takes_no_time() -> None:
    code = "import counterflow, sys; print({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "set()\n"
    (line,) = (line for line in found.stderr.splitlines() if line.endswith("| counterflow"))
    assert int(line.split("|")[1]) < 100_000, "microseconds"


ELSEWHERE = {
    # Options whose argument of Trainer or fit has another name, and those that only a command line needs.
    "algorithm": "rule",
    "model": "model",
    "data": "train",
    "data.name": "train",
    "data.root": "train",
    "data.download": "train",
    "data.length": "train",
    "data.evaluated": "train",
    "data.cache": "train",
    "data.tokenizer": "train",
    "model.cut": "cut",
    "engine.lag": "lag",
    "train.test": "evaluate_test",
    "run.dir": "run_dir",
    "run.display": "callbacks",
}


def keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all options, down to the groups that a Trainer takes as one object."""
    found = []
    for field in fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        whole = name in ("algorithm", "optimizer", "engine", "checkpoint", "sync")
        found += keys(value, f"{name}.") if is_dataclass(value) and not whole and name != "model" else [name]
    return found


def test_the_trainer_reaches_every_option_of_the_command_line() -> None:
    arguments: dict[str, Parameter] = {**signature(Trainer.__init__).parameters, **signature(Trainer.fit).parameters}
    config = load_config([])
    assert isinstance(config, TrainConfig)
    missing = [key for key in keys(config) if ELSEWHERE.get(key, key.rpartition(".")[2]) not in arguments]
    assert not missing
