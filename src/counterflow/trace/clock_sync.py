"""One clock for all ranks.

On one machine all processes share the clock behind ``perf_counter``. Between machines nothing is known but this: nobody
leaves a barrier before everybody has entered it. Each barrier so bounds how far two clocks are apart, from below and
from above, and several barriers leave the narrowest bounds.
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
"""When a rank entered each of some barriers and when it left it, on its own clock."""

_BARRIERS = 5


def barrier_stamps(barrier: Callable[[str], object], when: str) -> Stamps:
    """Go through some barriers with all other ranks; each has a name of its own."""
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
    """How far the first rank's clock is ahead of another rank's, in seconds, and how wrong that may be."""

    at: float
    """On the other rank's clock."""
    seconds: float
    error: float

    @classmethod
    def between(cls, first: Stamps, other: Stamps) -> "Offset":
        """From the barriers that both went through."""
        low = max(entered - left for (entered, _), (_, left) in zip(first, other, strict=True))
        high = min(left - entered for (_, left), (entered, _) in zip(first, other, strict=True))
        return cls(other[-1][1], (low + high) / 2, (high - low) / 2)


@dataclass(frozen=True)
class Clock:
    """A rank's clock as the first rank sees it; between two offsets it drifts evenly."""

    offsets: Sequence[Offset] = ()
    """In their order; none if it is the first rank's clock."""

    def common(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """``times`` of this clock on the first rank's."""
        if not self.offsets:
            return times
        return times + np.interp(times, [o.at for o in self.offsets], [o.seconds for o in self.offsets])

    @property
    def error(self) -> float:
        """Seconds by which times on the first rank's clock may be wrong."""
        return max((offset.error for offset in self.offsets), default=0.0)
