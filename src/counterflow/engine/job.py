"""One run as one process sees it, as plain objects."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate, islice

import torch
from torch import Tensor, nn

from counterflow.algorithms import RuleContext, Task
from counterflow.config import AlgorithmConfig, OptimizerConfig, SyncConfig
from counterflow.data.batch_loader import BatchKey, BatchLoader
from counterflow.engine.runtime import Runtime
from counterflow.models.partition import LayerStats, block_shapes, split_network
from counterflow.models.whitening import initialize
from counterflow.schedule import RunPlan
from counterflow.topology import Topology

_FIRST_SAMPLES = 5000
"""Training samples that modules are initialised from, as in airbench."""


@dataclass(frozen=True)
class Job:
    """Everything that a run is a function of, and how this process takes part in it."""

    topology: Topology
    plan: RunPlan
    batches: BatchLoader
    task: Task
    network: nn.Sequential
    """The whole network before training, on the CPU; entries are the cut points. Layers that this process does not need
    may be on the meta device."""
    layers: Sequence[LayerStats]
    """Size and cost of every layer of the network."""
    algorithm: AlgorithmConfig
    optimizer: OptimizerConfig
    seed: int
    runtime: Runtime
    schedule: str = "free"
    """``free`` for local rules; a pipeline schedule of torch, ``naive`` or ``pipedream`` for end-to-end references."""
    cut: tuple[int, ...] | None = None
    """Layers of every block; None while they are to be measured."""
    backend: str = "gloo"
    depth: int = 2
    """Activation messages that a receiver accepts ahead."""
    target_depth: int | None = None
    """Target messages that a receiver accepts ahead; None is the lag."""
    microbatches: int = 4
    """Parts of a batch under a pipeline schedule of torch."""
    log_every: int = 10
    activations: int = 0
    """Test samples whose activations every block keeps."""
    pretrained: bool = False
    """The network begins with the weights of a file."""
    resumes: bool = False
    """That file was not read yet, as a checkpoint should hold what became of its weights."""
    frozen: frozenset[str] = frozenset()
    """Names of the layers that do not learn."""
    sync: SyncConfig = field(default_factory=SyncConfig)
    """Meetings of the copies of a block in several replicas."""
    replica: int = 0
    """The replica whose view this is, see `of_replica`."""

    @property
    def batch_size(self) -> int:
        return self.batches.order.batch_size

    @property
    def shard_size(self) -> int:
        """Samples of a batch that one replica trains on."""
        return self.batch_size // self.topology.replicas

    @property
    def test_samples(self) -> int:
        return self.batches.shape_of_labels(self.batches.test)[0]

    def shard(self, n: int) -> BatchKey:
        """The part of training batch ``n`` that this replica trains on."""
        return BatchKey(n) if self.topology.replicas == 1 else BatchKey(n, replica=self.replica)

    def number(self, block: int) -> int:
        """Number of the copy of ``block`` in this replica among all pieces, from 1, replica after replica."""
        return self.replica * self.topology.blocks + block

    def of_replica(self, replica: int, copied: bool) -> "Job":
        """The run as ``replica`` sees it, with a copy of the network if ``copied``."""
        if self.topology.replicas == 1:
            return self
        network = copy.deepcopy(self.network) if copied else self.network
        return replace(self, replica=replica, plan=self.plan.of_replica(replica), network=network)

    @property
    def example(self) -> Tensor:
        """The first batch of inputs, on the CPU."""
        return self.batches.inputs(0).cpu()

    def initialize_inputs(self) -> None:
        """Initialise the parts of block 1 that take their state from training samples; its process alone has to.

        Does nothing in a run that goes on from a checkpoint or begins with the weights of a file: they hold that state.
        """
        if self.plan.start == 0 and not self.pretrained:
            initialize(self.blocks[0], partial(self.batches.first_inputs, _FIRST_SAMPLES))

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @cached_property
    def blocks(self) -> list[nn.Sequential]:
        """Blocks, bottom to top, that share the network's modules and keep their names in it."""
        assert self.cut is not None, "the cut is settled before blocks are made"
        return split_network(self.network, self.cut)

    def frozen_layers(self, block: int) -> list[nn.Module]:
        """Layers of ``block`` that do not learn."""
        return [
            layer
            for name, layer in self.blocks[block - 1]._modules.items()
            if layer is not None and name in self.frozen
        ]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of one sample of every block's output."""
        assert self.cut is not None
        return block_shapes(self.layers, self.cut)

    def forward_flops(self, block: int) -> int:
        """FLOPs of the forward pass of ``block`` for one sample."""
        assert self.cut is not None
        ends = list(accumulate(self.cut))
        return sum(layer.flops for layer in self.layers[ends[block - 1] - self.cut[block - 1] : ends[block - 1]])

    @property
    def rule_context(self) -> RuleContext:
        layers = iter(self.layers)
        layer_shapes = [[layer.shape for layer in islice(layers, len(block))] for block in self.blocks]
        return RuleContext(
            self.blocks, self.shapes, self.task, self.optimizer, self.plan.batches, self.seed, layer_shapes
        )
