"""Where numbers came from: configuration, versions, machine."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from counterflow.config import TrainConfig

_WITHOUT_EFFECT = (
    "run.",
    "checkpoint.",
    "scale",
    "trace",
    "engine.depth",
    "engine.target_depth",
    "engine.timeout",
    "engine.recovery",
    "engine.replay",
    "engine.backend",
    "train.log_every",
    "data.root",
    "data.download",
)
"""Keys that cannot change a result; of ``scale``, the values that it chose count. A dot at the end means all below."""


def settings(config: TrainConfig | Mapping[Any, Any]) -> dict[str, Any]:
    """What the result is a function of, as flat keys: ``model.width`` -> 64. A mapping is one read from a file."""
    content = config if isinstance(config, Mapping) else OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(content, Mapping)
    return {
        key: value
        for key, value in _flat("", content)
        if not any(key == other or (other.endswith(".") and key.startswith(other)) for other in _WITHOUT_EFFECT)
    }


def _flat(prefix: str, content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def config_hash(config: TrainConfig | Mapping[Any, Any]) -> str:
    """Equal for configurations that give equal results on one machine; 16 hexadecimal digits."""
    return _digest(settings(config))


def group_hash(config: TrainConfig | Mapping[Any, Any]) -> str:
    """Equal for configurations that differ in the seed alone; 16 hexadecimal digits."""
    return _digest({key: value for key, value in settings(config).items() if key != "seed"})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hardware(device: torch.device) -> str:
    """What computes: the name of the GPU, or the model and the number of cores of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def torchvision_version() -> str | None:
    """Asked of the package's metadata: importing it takes seconds."""
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return None


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
