"""Clocks: how finely they tick, and how far those of two ranks are apart."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from counterflow.doctor.check import Check, Status

COARSE = 1e-3
"""Seconds between two ticks, from which on waits are not measured any more."""
APART = 0.1
"""Seconds."""

_LOOKS = 0.2
"""Seconds."""


@dataclass(frozen=True)
class Offset:
    """How far another rank's wall clock is ahead of this one, in seconds, and how wrong that may be."""

    seconds: float
    error: float

    @classmethod
    def cristian(cls, sent: float, received: float, theirs: float) -> "Offset":
        """From a question and its answer ``theirs``, which was given at an unknown time in between."""
        return cls(theirs - (sent + received) / 2, (received - sent) / 2)

    def __add__(self, other: "Offset") -> "Offset":
        return Offset(self.seconds + other.seconds, self.error + other.error)


def resolution(clock: Callable[[], float] = time.monotonic) -> Check:
    tick = math.inf
    start = time.perf_counter()
    before = clock()
    ticks = 0
    while ticks < 100 and time.perf_counter() - start < _LOOKS:
        now = clock()
        if now > before:
            tick, ticks = min(tick, now - before), ticks + 1
        before = now
    if tick > COARSE:
        found = f"the monotonic clock ticks every {1e3 * tick:.3g} ms" if ticks else "the monotonic clock stands still"
        return Check("clock", Status.WARN, found, "another clock source of the kernel: waits cannot be measured")
    return Check("clock", Status.OK, f"the monotonic clock ticks every {1e6 * tick:.3g} us")


def wall_clocks(steps: Sequence[Offset]) -> Check:
    """``steps``: the offset of each rank's clock from the one of the rank below, from rank 1 on."""
    clocks = [Offset(0.0, 0.0), *accumulate(steps, Offset.__add__)]
    order = sorted(range(len(clocks)), key=lambda rank: clocks[rank].seconds)
    first, last = order[0], order[-1]
    apart = clocks[last].seconds - clocks[first].seconds
    error = sum(step.error for step in steps[min(first, last) : max(first, last)])
    found = f"at most {1e3 * apart:.3f} ms apart (ranks {first} and {last}), +- {1e3 * error:.3f} ms"
    if apart > APART:
        return Check("wall clocks", Status.WARN, found, "synchronise the nodes (chrony): logs of ranks will not match")
    return Check("wall clocks", Status.OK, found)
