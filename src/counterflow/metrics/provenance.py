"""Provenance of results: configuration, versions, hardware, commit, and the fingerprint of trained weights."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the report reads configurations without torch
    import torch

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
    "engine.secret_file",
    "engine.backend",
    "engine.recompute",
    "topology.inner",
    "train.log_every",
    "data.root",
    "data.cache",
    "data.download",
)
"""Keys that cannot change a result. A dot at the end stands for all keys below it. ``scale`` only chooses the values of
other keys, which count themselves."""


def settings(config: Any) -> dict[str, Any]:
    """Keys and values that determine the result: ``model.width`` -> 64.

    ``config`` is a configuration dataclass, or a nested mapping such as one read from a file.
    """
    content: Any = config if isinstance(config, Mapping) else asdict(config)
    found = {key: value for key, value in _flat("", content) if affects_result(key)}
    if found.get("data.workers", 0) == 0:
        found.pop("data.workers", None)
    else:  # any number of workers reads the same, though not what is read into memory once
        found["data.workers"] = True
    return found


def affects_result(key: str) -> bool:
    """True for a configuration key, such as ``model.width``, that can change the result of a run."""
    return not any(key == other or (other.endswith(".") and key.startswith(other)) for other in _WITHOUT_EFFECT)


def _flat(prefix: str, content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:  # a tuple comes back from a file as a list
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def config_hash(config: Any) -> str:
    """Equal for configurations that give equal results on one machine; 16 hexadecimal digits."""
    return _digest(settings(config))


def group_hash(config: Any) -> str:
    """Equal for configurations that differ in the seed alone; 16 hexadecimal digits."""
    return _digest({key: value for key, value in settings(config).items() if key != "seed"})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(module: "torch.nn.Module") -> bytes:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers of ``module``; those on the meta device
    have no bytes."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def fingerprint(digests: Iterable[bytes]) -> str:
    """Fingerprint of trained weights, equal for equal bits.

    SHA-256 over the digests of all blocks, bottom to top; independent of the ranks that own the blocks.
    """
    return hashlib.sha256(b"".join(digests)).hexdigest()


def versions(device: "torch.device") -> dict[str, str | None]:
    """Software and hardware that may round differently elsewhere."""
    import torch

    return {
        "counterflow": version("counterflow"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision_version(),
        "hardware": hardware(device),
    }


def hardware(device: "torch.device") -> str:
    """Name of the GPU, or model and number of cores of the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []  # not Linux
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores"


def torchvision_version() -> str | None:
    """Version from the package's metadata, as importing it takes seconds; None if it is not installed."""
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of this source, with ``-dirty`` if it has changes; None outside a checkout."""
    try:
        return subprocess.check_output(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=10,
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None
