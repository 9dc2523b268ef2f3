"""Model profiles with given times: no clock, no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterflow.planner.local_forecast import LocalRun
from counterflow.planner.model_profile import BlockOverhead, LayerProfile, ModelProfile
from counterflow.planner.options import Cluster
from counterflow.planner.search import SearchResult, search


def profile(seconds: Sequence[float], up: Sequence[int] = (), batch: int = 64, **more: Any) -> ModelProfile:
    """Layers that take ``seconds``, a third of it forward; ``up`` are the bytes that leave a block that ends there."""
    sizes = up or [0] * len(seconds)
    layers = [
        LayerProfile(
            forward=time / 3,
            backward=2 * time / 3,
            output=size,
            block_overhead=BlockOverhead(up=size, down=1),
            **more,
        )
        for time, size in zip(seconds, sizes, strict=True)
    ]
    return ModelProfile(layers, batch)


def searched(
    profile: ModelProfile,
    ranks: int,
    lag: int = 2,
    depth: int = 2,
    *,
    latency: float = 0.0,
    bandwidth: float | None = None,
    memory: float | None = None,
    replicas: int = 1,
    local: LocalRun | None = None,
    coarser: Mapping[str, ModelProfile] | None = None,
    **cluster: Any,
) -> SearchResult:
    """Search on machines that are given in seconds and bytes; ``coarser`` are profiles of further wires."""
    machines = Cluster(
        ranks=ranks,
        latency_ms=1e3 * latency,
        bandwidth_gbps=None if bandwidth is None else 8 * bandwidth / 1e9,
        memory_gb=None if memory is None else memory / 1e9,
        **cluster,
    )
    run = replace(local or LocalRun(), lag=lag, depth=depth)
    return search({"fp32": profile, **(coarser or {})}, machines, run, replicas, lambda text: None)
