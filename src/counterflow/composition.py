"""From a folder of YAML files and overrides to a checked configuration."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from counterflow.algorithms import ALGORITHMS, REFERENCES
from counterflow.config import TrainConfig, register

register([system.Config for system in ALGORITHMS.values()] + [system.Config for system in REFERENCES.values()])


def configure(conf: Path, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of ``conf/train.yaml`` with ``overrides``. ``ValueError`` of one line if it is wrong."""
    GlobalHydra.instance().clear()
    with _one_line(), hydra.initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return check(hydra.compose("train", list(overrides)))


def check(composed: DictConfig) -> TrainConfig:
    """The schema's objects, each of which checks itself. ``ValueError`` of one line if one refuses."""
    _refuse_additions(composed)
    with _one_line():
        config = OmegaConf.to_object(composed)
    assert isinstance(config, TrainConfig)
    return config


def command_line(conf: Path, task: Callable[[DictConfig], None]) -> None:
    """Run ``task`` under hydra's command line, with all that it offers. ``ValueError`` of one line if it is wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises what it would print on many lines, on every rank
    with _one_line():
        hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name="train")(task)()


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        options = [option for option in error.options or () if not option.endswith("schema")]
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        raise ValueError(f"{group}={choice}: allowed are {', '.join(options)}") from error
    except OverrideParseException as error:
        raise ValueError(f"{error.override}: {error.message.splitlines()[0]}") from error
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
    assert schema is not None
    assert is_dataclass(schema)
    known = {field.name for field in fields(schema)}
    for key in map(str, node):
        if key not in known:
            raise _unknown(prefix + key, schema)
        if not OmegaConf.is_missing(node, key) and is_dataclass(OmegaConf.get_type(node, key)):
            _refuse_additions(node[key], f"{prefix}{key}.")
