"""What a network costs: the times of its blocks, and the sizes of the messages between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageTimes:
    """Seconds that one block needs for one whole update batch."""

    forward: float
    backward: float
    """Of everything that is learnt, but the update."""
    update: float = 0.0
    target: float = 0.0
    """To take a target and emit the next one (free only)."""
    weight_share: float = 0.5
    """The part of ``backward`` that nobody below waits for: the gradients of the weights (zbh1, zbv only)."""

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "update", "target"):
            value: float = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: must be a finite number of seconds, at least 0")
        if not 0 <= self.weight_share <= 1:
            raise ValueError(f"weight_share={self.weight_share}: must be between 0 and 1")


@dataclass(frozen=True)
class Link:
    """Every directed edge between neighbouring stages on different ranks; its messages leave one after the other.

    As with gloo, a message leaves when the sender has been told that a receive is posted for it, which takes a latency
    as well. Stages that share their ranks do not share bandwidth.
    """

    latency: float = 0.0
    """Seconds from the end of a send until its message is there."""
    bandwidth: float = math.inf
    """Bytes a second."""

    def __post_init__(self) -> None:
        if not 0 <= self.latency < math.inf:
            raise ValueError(f"latency={self.latency}: must be a finite number of seconds, at least 0")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth={self.bandwidth}: must be more than 0 bytes a second")


@dataclass(frozen=True)
class Load:
    """Of all blocks, bottom to top."""

    stages: Sequence[StageTimes]
    up: Sequence[int]
    """Bytes of a whole batch's activation leaving each block but the top; the gradients of pipelines are as large."""
    down: Sequence[int] = ()
    """Bytes of a target message entering each block but the top; empty for a rule that sends no targets, as AL."""

    def __post_init__(self) -> None:
        edges = len(self.stages) - 1
        if edges < 0:
            raise ValueError("stages=[]: must be at least one")
        if len(self.up) != edges:
            raise ValueError(f"up={list(self.up)}: must be {edges} sizes, one for each block but the top")
        if len(self.down) not in (0, edges):
            raise ValueError(f"down={list(self.down)}: must be {edges} sizes, one for each block but the top, or none")
