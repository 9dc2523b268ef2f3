"""Clock synchronization between ranks.

Processes of one machine share the clock behind ``perf_counter``. Between machines, barriers bound the offset of two
clocks: no rank leaves a barrier before all ranks have entered it. Each barrier gives a lower and an upper bound, and
several barriers narrow the bounds.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Stamps = Sequence[tuple[float, float]]
"""Seconds at which a rank entered and left each of several barriers, on its own clock."""

_BARRIERS = 5


def barrier_stamps(barrier: Callable[[str], object], when: str) -> Stamps:
    """Pass several barriers with all other ranks, each with a name of its own."""
    stamps = []
    for i in range(_BARRIERS):
        entered = perf_counter()
        barrier(f"their clocks at the {when}, {i}")
        stamps.append((entered, perf_counter()))
    return stamps


def clock_domain() -> str:
    """Equal for processes that share a clock."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/time")
    shared = os.readlink(namespace) if namespace.exists() else ""
    return f"{boot.read_text().strip() if boot.exists() else platform.node()} {shared}"


@dataclass(frozen=True)
class Offset:
    """Offset of rank 0's clock to another rank's clock."""

    at: float
    """Time of the measurement on the other rank's clock, in seconds."""
    seconds: float
    """Seconds by which rank 0's clock is ahead."""
    error: float
    """Largest possible error of ``seconds``."""

    @classmethod
    def between(cls, reference: Stamps, other: Stamps) -> "Offset":
        """Offset from the barriers that rank 0 (``reference``) and the other rank both passed."""
        low = max(entered - left for (entered, _), (_, left) in zip(reference, other, strict=True))
        high = min(left - entered for (_, left), (entered, _) in zip(reference, other, strict=True))
        return cls(other[-1][1], (low + high) / 2, (high - low) / 2)


@dataclass(frozen=True)
class Clock:
    """Clock of a rank relative to rank 0's; it drifts linearly between two offsets."""

    offsets: Sequence[Offset] = ()
    """Sorted by time; none if the rank shares rank 0's clock."""

    def common(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert ``times`` of this clock to rank 0's clock."""
        if not self.offsets:
            return times
        return times + np.interp(times, [o.at for o in self.offsets], [o.seconds for o in self.offsets])

    @property
    def error(self) -> float:
        """Largest possible error of converted times, in seconds."""
        return max((offset.error for offset in self.offsets), default=0.0)
