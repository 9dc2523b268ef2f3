"""The machines of a plan, in seconds and bytes."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from counterflow.planner.options import MachinesConfig
from counterflow.schedule.load import Link


@dataclass(frozen=True, kw_only=True)
class Machines:
    """``ranks`` processes, each ``speed`` times as fast as the one that was measured."""

    ranks: int
    speed: float = 1.0
    memory: float = inf
    """Bytes of each."""
    link: Link = field(default_factory=Link)
    overhead: float = 0.0
    """Seconds of a process for every action of a block."""
    jitter_share: float = 0.0
    jitter_factor: float = 1.0

    @classmethod
    def of(cls, config: MachinesConfig) -> "Machines":
        return cls(
            ranks=config.ranks,
            speed=config.speed,
            memory=config.memory,
            link=Link(config.latency_ms / 1e3, config.bytes_per_second),
            overhead=config.overhead_ms / 1e3,
            jitter_share=config.jitter_share,
            jitter_factor=config.jitter_factor,
        )

    def jitter(self, blocks: int, batches: int, first: int = 0) -> Callable[[int, int], float] | None:
        """By what a block takes longer at a batch, counted from block ``first + 1`` of ``blocks``.

        Slow batches come at random, the same whoever asks, and in turn to all blocks in random orders: what a plan
        says about them is not that one of few happened to be slow more often.
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
