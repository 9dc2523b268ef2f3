"""Options of ``launch/plan.py``: those of a run, and the machines that it is planned for."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from counterflow.algorithms import ALGORITHMS
from counterflow.config import TrainConfig
from counterflow.config.validators import Options, checked, fraction, one_of, size
from counterflow.measured_links import read_links
from counterflow.schedule.forecast import LinkSpec

_LARGEST = 1e6
"""Largest latency and overhead in milliseconds, and largest jitter factor."""


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key}={value}: must be greater than 0")


def _within(key: str, value: float, least: int) -> None:
    if not least <= value <= _LARGEST:
        raise ValueError(f"{key}={value}: must be at least {least} and at most {_LARGEST:g}")


@dataclass(kw_only=True)
class Cluster(Options, key="machines"):
    """Machines of a plan: equal processes, on nodes with equally many of them."""

    ranks: int = checked(4, size, 1)
    """Largest number of processes, on all nodes together."""
    nodes: int | None = checked(None, size, 1)
    """Nodes of these processes. What a node sends to others shares one link, and so does what it receives; null: every
    edge between two processes has such a link of its own."""
    speed: float = checked(1.0, _positive)
    """Speed of a process, as a multiple of this machine's."""
    memory_gb: float | None = checked(None, _positive)
    """Memory of a process for parameters, activations and messages, in 10^9 bytes; null: unlimited."""
    bandwidth_gbps: float | None = checked(None, _positive)
    """Bandwidth between nodes in each direction, in 10^9 bits per second; null: unlimited."""
    latency_ms: float = checked(0.0, _within, 0)
    """Time from the end of a send to the arrival, between nodes."""
    node_bandwidth_gbps: float | None = checked(None, _positive)
    """Bandwidth of an edge within a node; null: unlimited."""
    node_latency_ms: float = checked(0.0, _within, 0)
    """Time from the end of a send to the arrival, within a node."""
    links: str | None = None
    """File of ``counterflow doctor --links``, which has nodes, bandwidths and latencies: the slowest link between
    nodes counts, and the slowest one within a node."""
    overhead_ms: float = checked(0.0, _within, 0)
    """Time of a process for every action of its block (target, forward pass, update) besides the computation."""
    jitter_share: float = checked(0.0, fraction)
    """Share of all batches for which one process, drawn at random, is slow."""
    jitter_factor: float = checked(3.0, _within, 1)
    """Factor by which that process is slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        links = ("nodes", "bandwidth_gbps", "latency_ms", "node_bandwidth_gbps", "node_latency_ms")
        for name in links if self.links is not None else links[3:] if self.nodes is None else ():
            if value := getattr(self, name):
                reason = "has no effect without machines.nodes" if self.links is None else "is what machines.links has"
                raise ValueError(f"machines.{name}={value:g}: {reason}")
        if self.nodes is not None and self.ranks % self.nodes:
            raise ValueError(f"machines.nodes={self.nodes}: must divide machines.ranks={self.ranks}")

    def with_measured_links(self) -> "Cluster":
        """These machines with the links of the file ``links``, if there is one.

        Raises:
            ValueError: There is no such file, or its nodes do not divide the processes.
        """
        if self.links is None:
            return self
        try:
            links = read_links(Path(self.links))
        except ValueError as error:
            raise ValueError(f"machines.links={error}") from error
        slowest: dict[bool, dict[str, Any]] = {True: {}, False: {}}
        for crosses, values in slowest.items():
            if some := [link for link in links if link.crosses_nodes == crosses]:
                values["bandwidth_gbps"] = 8 * min(link.bandwidth for link in some) / 1e9
                values["latency_ms"] = 1e3 * max(link.latency for link in some)
        within = {f"node_{name}": value for name, value in slowest[False].items()}
        nodes = 1 + max(max(link.source_node, link.destination_node) for link in links)
        return replace(self, links=None, nodes=nodes, **slowest[True], **within)

    @property
    def threads_share(self) -> int:
        """Processes that share the cores of a machine."""
        return self.ranks // (self.nodes or 1)

    def processes_per_node(self, processes: int) -> int | None:
        """Processes on each of the fewest nodes that hold ``processes``, equally many each; None if none do."""
        if self.nodes is None:
            return 1
        most = self.ranks // self.nodes
        counts = (processes // nodes for nodes in range(1, self.nodes + 1) if processes % nodes == 0)
        return next((count for count in counts if count <= most), None)

    @property
    def memory(self) -> float:
        """Bytes of a process."""
        return math.inf if self.memory_gb is None else 1e9 * self.memory_gb

    @property
    def link(self) -> LinkSpec:
        """Between nodes."""
        return _link(self.latency_ms, self.bandwidth_gbps)

    @property
    def node_link(self) -> LinkSpec:
        """Within a node."""
        return _link(self.node_latency_ms, self.node_bandwidth_gbps)

    @property
    def overhead(self) -> float:
        """Seconds of a process for every action."""
        return self.overhead_ms / 1e3

    def batches(self, steady: int, slow: int, at_most: int) -> int:
        """Number of batches to simulate: ``steady``, and with jitter as many more as hold ``slow`` slow batches.

        Args:
            steady: Batches without jitter.
            slow: Slow batches that are wanted.
            at_most: Largest number of batches for them.
        """
        return steady + (min(at_most, int(slow / self.jitter_share)) if self.jitter_share else 0)

    def jitter(self, blocks: int, batches: int, first: int = 0) -> Callable[[int, int], float] | None:
        """Factors by which block and batch take longer, or None without jitter.

        Slow batches are drawn at random, the same in every call. They come to all blocks in turn, in random orders, so
        that no block of a plan is slow more often than another one by chance.

        Args:
            blocks: Blocks of the network.
            batches: Batches of the simulation.
            first: Number of blocks below the simulated ones.
        """
        if not self.jitter_share:
            return None
        draw = random.Random(0)
        slow: dict[int, int] = {}
        turns: list[int] = []
        for n in range(batches):
            if draw.random() < self.jitter_share:
                turns = turns or draw.sample(range(1, blocks + 1), blocks)
                slow[n] = turns.pop()
        return lambda block, n: self.jitter_factor if slow.get(n) == block + first else 1.0


def _link(latency_ms: float, bandwidth_gbps: float | None) -> LinkSpec:
    return LinkSpec(latency_ms / 1e3, math.inf if bandwidth_gbps is None else 1e9 / 8 * bandwidth_gbps)


WIRES = ("fp32", "bf16", "int8")
"""Values of ``engine.wire``, from the most exact one to the smallest messages."""


@dataclass(kw_only=True)
class PlanOptions(Options, key="plan"):
    out: str | None = None
    """File to which the plan is written as JSON."""
    coarsest_wire: str = checked("int8", one_of, WIRES)
    """Smallest messages that the plan may choose for ``engine.wire``."""


@dataclass(kw_only=True)
class PlanConfig(TrainConfig):
    """A run without ``blocks``, ``model.cut`` and ``topology.inner``, which the plan finds. ``engine.lag`` and
    ``engine.depth`` are the smallest ones that it considers, and ``engine.wire`` is the most exact one."""

    blocks: int = 1
    machines: Cluster = field(default_factory=Cluster)
    plan: PlanOptions = field(default_factory=PlanOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("algorithm", self.algorithm.name, ALGORITHMS)  # end-to-end references have a lock
        lag, target_depth = self.engine.lag, self.engine.target_depth
        for option, refused, reason in (
            (
                f"blocks={self.blocks}",
                self.blocks != 1,
                "is what the plan finds, allowed is 1; machines.ranks= bounds it",
            ),
            (f"model.cut={self.model.cut}", self.model.cut != "flops", "is what the plan finds, allowed is flops"),
            (
                f"topology.inner={self.topology.inner}",
                self.topology.inner != "pipeline",
                "is what the plan finds, allowed is pipeline",
            ),
            (
                f"plan.coarsest_wire={self.plan.coarsest_wire}",
                not self.wires,
                f"must not be more exact than engine.wire={self.engine.wire}",
            ),
            (
                f"machines.ranks={self.machines.ranks}",
                self.machines.ranks < self.replicas,
                f"must be at least replicas={self.replicas}, as every block of every replica has a process",
            ),
            (f"engine.lag={lag}", lag == "exact", "runs on one process, allowed are whole numbers of at least 1"),
            (f"engine.target_depth={target_depth}", target_depth is not None, "is the lag of a plan, allowed is null"),
        ):
            if refused:
                raise ValueError(f"{option}: {reason}")

    @property
    def wires(self) -> Sequence[str]:
        """Values of ``engine.wire`` that the plan considers, the most exact one first."""
        return WIRES[WIRES.index(self.engine.wire) : WIRES.index(self.plan.coarsest_wire) + 1]

    def training(self, threads: int) -> TrainConfig:
        """Configuration of the run itself, with ``threads`` threads per process."""
        given = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**given, "engine": replace(self.engine, threads=threads)})


ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
