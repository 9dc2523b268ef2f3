"""Trace of one rank, its clock, and the file through which it reaches rank 0.

Processes of one machine share the clock behind ``perf_counter``. Between machines, barriers bound the offset of two
clocks: no rank leaves a barrier before all ranks have entered it. Each barrier gives a lower and an upper bound, and
several barriers narrow the bounds.
"""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.trace.recorder import DTYPE, Recorder, Spans

Stamps = Sequence[tuple[float, float]]
"""Seconds at which a rank entered and left each of several barriers, on its own clock."""


def barrier_stamps(barrier: Callable[[str], object], when: str) -> Stamps:
    """Pass several barriers with all other ranks, each with a name of its own."""
    stamps = []
    for i in range(5):
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


@dataclass(frozen=True)
class RankTrace:
    rank: int
    lanes: Mapping[int, str]
    """Name of each lane."""
    spans: Spans
    """Sorted by start; a span comes before those within it."""

    @classmethod
    def of(cls, rank: int, recorder: Recorder) -> "RankTrace":
        """Trace of this process, on its own clock."""
        spans = recorder.spans()
        lanes = {int(lane): recorder.lanes.get(int(lane), f"block {lane}") for lane in np.unique(spans["lane"])}
        return cls(rank, lanes, spans)


def write(path: Path, trace: RankTrace, stamps: Sequence[Stamps]) -> None:
    """Write ``trace`` and the rank's ``stamps`` of each clock synchronization. Raises ``OSError``."""
    head = {"rank": trace.rank, "lanes": trace.lanes, "clock_domain": clock_domain(), "stamps": stamps}
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        file.write(trace.spans.tobytes())


def read(path: Path, reference: Path) -> tuple[RankTrace, Clock]:
    """Trace at ``path`` on the clock of the rank that wrote ``reference``, and the rank's own clock.

    Raises ``OSError``.
    """
    (head, begin), (here, _) = _head(path), _head(reference)
    lanes = {int(lane): name for lane, name in head["lanes"].items()}
    spans: Spans = np.memmap(path, DTYPE, "r", begin) if path.stat().st_size > begin else np.empty(0, DTYPE)
    clock = Clock()
    if head["clock_domain"] != here["clock_domain"]:
        # A restarted rank has no stamps of the first synchronization: compare the last ones.
        both = min(len(here["stamps"]), len(head["stamps"]))
        pairs = zip(here["stamps"][-both:], head["stamps"][-both:], strict=True)
        clock = Clock([Offset.between(ours, theirs) for ours, theirs in pairs])
        spans = spans.copy()
        for end in ("start", "end"):
            spans[end] = clock.common(spans[end])
    return RankTrace(head["rank"], lanes, spans), clock


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """First line of a file, and the offset of the next one."""
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)
