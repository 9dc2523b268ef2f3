"""The resolved configuration of a run as flat keys, and which of them say what was trained."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Configuration = Mapping[str, Any]
"""``algorithm.latent.dim`` -> 512. Lists are values."""

_WITHOUT_EFFECT = (
    "seed",
    "scale",
    "engine.timeout",
    "engine.depth",
    "engine.target_depth",
    "engine.backend",
    "train.log_every",
    "data.root",
    "data.download",
)
"""Options that say where, how fast and with which seed, not what; of ``scale``, the values that it chose count."""


def read(path: Path) -> Configuration:
    """``ValueError`` of one line that names the file where it is missing or is no configuration."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold named options")
    return dict(_flat("", content))


def _flat(prefix: str, content: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    pairs = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        pairs += _flat(f"{name}.", value) if isinstance(value, dict) and value else [(name, value)]
    return pairs


def settings(configuration: Configuration) -> Configuration:
    """What the result is a function of, but for the seed."""
    return {
        key: value for key, value in configuration.items() if not key.startswith("run.") and key not in _WITHOUT_EFFECT
    }


def network(configuration: Configuration) -> Configuration:
    """The network and the data it learns, however it is cut."""
    return {
        key: value
        for key, value in settings(configuration).items()
        if key.startswith(("model.", "data.")) and key != "model.cut"
    }


def group_digest(configuration: Configuration) -> str:
    """Equal for configurations that differ in nothing that could be meant: threads change the last bits alone."""
    return digest({key: value for key, value in settings(configuration).items() if key != "engine.threads"})


def digest(configuration: Configuration) -> str:
    """Equal for equal options; hex."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode()).hexdigest()
