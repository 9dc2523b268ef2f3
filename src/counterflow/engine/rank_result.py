"""Result of one rank at the end of a run."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from counterflow.engine.cost import Flops


@dataclass(frozen=True)
class RankResult:
    digests: dict[int, bytes]
    """sha256 of the parameters and buffers of each of its blocks."""
    modules: dict[int, nn.Module]
    """The trained forward block of each of its blocks."""
    effective_parameters: int
    """Parameters of its blocks without which the network does not predict."""
    affiliated_parameters: int
    """Parameters that only help to learn."""
    seconds: float
    """Wall time of its steady state: without the fill before it and the drain after it."""
    batches: int
    """Training batches of its steady state."""
    receive_wait: float
    """Seconds of these that it waited for a message."""
    send_wait: float
    """Seconds of these that it waited for room to send."""
    flops: Flops
    activations: dict[int, Tensor]
    """Outputs of each of its blocks for some test samples, ``[M, d]``, if wanted."""


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Trainable parameters of ``modules``."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
