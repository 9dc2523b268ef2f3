"""What is installed, and whether it is the same everywhere."""

import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from counterflow.doctor.check import Check, Status

_NONE = "none"


def versions() -> dict[str, str]:
    try:
        torchvision = version("torchvision")
    except PackageNotFoundError:
        torchvision = _NONE
    return {"Python": platform.python_version(), "torch": str(torch.__version__), "torchvision": torchvision}


def same_versions(ranks: Mapping[int, Mapping[str, str]]) -> Check:
    """``ranks``: the `versions` of each rank. Other versions round otherwise, and may not understand each other."""
    differing = []
    first = next(iter(ranks.values()))
    for name in first:
        holders: dict[str, list[int]] = {}
        for rank, found in ranks.items():
            holders.setdefault(found.get(name, _NONE), []).append(rank)
        if len(holders) > 1:
            places = (f"{text} on rank {', '.join(map(str, who))}" for text, who in holders.items())
            differing.append(f"{name} {'; '.join(places)}")
    if differing:
        return Check(
            "versions",
            Status.FAIL,
            " / ".join(differing),
            "install the same versions on every node, and use its Python",
        )
    on_all = f" on all {len(ranks)} ranks" if len(ranks) > 1 else ""
    return Check("versions", Status.OK, ", ".join(f"{name} {text}" for name, text in first.items()) + on_all)


def torchvision_loads() -> Check:
    """A torchvision that was built for another torch is installed, and fails on import."""
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Check(
            "torchvision", Status.FAIL, f"does not load: {reason}", "install the torchvision that belongs to this torch"
        )
    return Check("torchvision", Status.OK, f"{torchvision.__version__} loads")


def built_with(backend: str, settings: str) -> bool:
    """Whether torch has ``backend``, by the build settings that it prints; one that they do not name is there."""
    found = re.search(rf"\bUSE_{backend.upper()}=(\w*)", settings)
    return found is None or found[1].upper() not in ("OFF", "0", "FALSE", "")


def gloo(settings: str) -> Check:
    if built_with("gloo", settings):
        return Check("gloo", Status.OK, "part of this torch")
    return Check("gloo", Status.FAIL, "not part of this torch", "install torch from https://pytorch.org")


def nccl(settings: str, devices: int, local_ranks: int) -> Check:
    """``devices``: CUDA devices that this node's processes see."""
    available = built_with("nccl", settings)
    found = f"{'available' if available else 'not part of this torch'}; {devices} GPUs for {local_ranks} local ranks"
    if 0 < devices < local_ranks:
        return Check(
            "nccl",
            Status.WARN,
            found,
            f"NCCL refuses two ranks on one GPU: --nproc_per_node={devices}, or engine.backend=gloo",
        )
    if devices and not available:
        return Check("nccl", Status.WARN, found, "engine.backend=gloo, or a torch built for CUDA")
    return Check("nccl", Status.OK, found + ("" if devices else ": gloo carries the messages"))
