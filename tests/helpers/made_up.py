"""Networks with given times: no clock, no tensors."""

from collections.abc import Sequence
from typing import Any

from counterflow.planner.machines import Machines
from counterflow.planner.network import Head, Layer, Network
from counterflow.planner.plan import RunPlan, plan
from counterflow.schedule.load import Link


def network(seconds: Sequence[float], up: Sequence[int] = (), batch: int = 64, **more: Any) -> Network:
    """Layers that take so long, a third of it forward; what leaves a block that ends with them."""
    sizes = up or [0] * len(seconds)
    layers = [
        Layer(forward=time / 3, backward=2 * time / 3, output=size, head=Head(up=size, down=1), **more)
        for time, size in zip(seconds, sizes, strict=True)
    ]
    return Network(layers, batch)


def planned(network: Network, ranks: int, lag: int = 2, depth: int = 2, **machines: Any) -> RunPlan:
    return plan(network, Machines(ranks=ranks, **machines), lag, depth, lambda text: None)


def link(latency: float = 0.0, bandwidth: float = float("inf")) -> Link:
    return Link(latency, bandwidth)
