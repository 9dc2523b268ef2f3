"""From a folder of YAML files and overrides to a checked configuration."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import counterflow
from counterflow.algorithms import ALGORITHMS, END_TO_END
from counterflow.cli.console import closed_pipe_allowed
from counterflow.config import DATA, MODELS, OPTIMIZERS, SCALES, TrainConfig

Schema = TypeVar("Schema")

_NAMELESS = ("hydra.", "run.", "checkpoint.")
_SAME_WHATEVER = ("experiment", "scale", "data.root", "data.download", "engine.threads")
"""Overrides that do not distinguish the runs of one sweep, or belong to the machine."""


def conf_dir() -> Path:
    """The folder of YAML files: in a wheel beside this package, in a checkout at its top level."""
    package = Path(counterflow.__file__).parent
    return package / "conf" if (package / "conf").is_dir() else package.parent.parent / "conf"


def _by_scale(*values: Any, _root_: DictConfig) -> Any:
    """``${by_scale:smoke,cpu,full}``: a value for every scale, side by side in one preset."""
    if len(values) != len(SCALES):
        raise ValueError(f"by_scale: needs {len(SCALES)} values, for {', '.join(SCALES)}, and has {len(values)}")
    if _root_.scale not in SCALES:
        raise ValueError(f"scale={_root_.scale}: allowed are {', '.join(SCALES)}")
    return values[SCALES.index(_root_.scale)]


def _by_algorithm(choices: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """``${by_algorithm:{bp:1,others:2}}``: what was chosen on held out data for each algorithm, in one preset."""
    return choices.get(_root_.algorithm.name, choices["others"])


def _sweep_dir(*, _root_: DictConfig) -> str:
    """``${sweep_dir:}``: the folder of a sweep's runs, which ``run.dir`` names."""
    return str(_root_.run.dir or f"runs/{_root_.run.experiment or 'multirun'}-{_root_.scale}")


OmegaConf.register_new_resolver("by_algorithm", _by_algorithm, replace=True)
OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)

_STORE = ConfigStore.instance()
_STORE.store(name="schema", node=TrainConfig)
for _group, _nodes in (
    ("algorithm", [*ALGORITHMS.values(), *END_TO_END.values()]),
    ("model", MODELS),
    ("data", DATA.values()),
    ("optimizer", OPTIMIZERS),
):
    for _node in _nodes:
        _STORE.store(group=_group, name=_node.name, node=_node)


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """The configuration of ``conf/train.yaml`` with ``overrides``. ``ValueError`` of one line if it is wrong."""
    GlobalHydra.instance().clear()
    with _one_line(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(hydra.compose("train", list(overrides)), TrainConfig)


def validate(composed: DictConfig, schema: type[Schema]) -> Schema:
    """The objects of ``schema``, each of which checks itself. ``ValueError`` of one line if one refuses."""
    _refuse_additions(composed)
    with _one_line():
        config = OmegaConf.to_object(composed)
    assert isinstance(config, schema)
    return config


def run_hydra(task: Callable[[DictConfig], None], name: str = "train") -> None:
    """Run ``task`` under hydra's command line, on ``conf/NAME.yaml``. ``ValueError`` of one line if it is wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises what it would print on many lines, on every rank
    with closed_pipe_allowed(), _one_line():
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(task)()


def job_name(overrides: Sequence[str]) -> str:
    """The folder of one job of a sweep: its overrides, in an order of their own."""
    named = []
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        if not key.startswith(_NAMELESS) and key not in _SAME_WHATEVER:
            named.append(override.replace("/", "_"))
    return ",".join(sorted(named)) or "default"


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        raise ValueError(f"{group}={choice}: allowed are {', '.join(error.options or ())}") from error
    except OverrideParseException as error:
        raise ValueError(f"{error.override}: {error.message.splitlines()[0]}") from error
    except TypeError as error:  # hydra's own, where a list or a number stands for the name of a choice
        raise ValueError(f"a choice must be a name: {error}") from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and is_dataclass(cause.object_type):
            raise _unknown(cause.full_key or str(cause.key), cause.object_type) from error
        # Hydra's first line says which override it was, the first line of its cause why.
        texts = [str(e).strip().removeprefix("Error merging override ") for e in (error, cause) if e is not None]
        message = ": ".join(dict.fromkeys(text.splitlines()[0] for text in texts if text))
        key = getattr(error, "full_key", None) or ""
        raise ValueError(message if key in message else f"{key}: {message}") from error


def _unknown(key: str, schema: Any) -> ValueError:
    return ValueError(f"{key}: no such key, allowed are {', '.join(field.name for field in fields(schema))}")


def _refuse_additions(node: DictConfig, prefix: str = "") -> None:
    """Hydra lets ``+key=value`` add what no schema knows, and so what nothing reads."""
    schema = OmegaConf.get_type(node)
    assert is_dataclass(schema)
    known = {field.name for field in fields(schema)}
    for key in map(str, node):
        if key not in known:
            raise _unknown(prefix + key, schema)
        if not OmegaConf.is_missing(node, key) and is_dataclass(OmegaConf.get_type(node, key)):
            _refuse_additions(node[key], f"{prefix}{key}.")
