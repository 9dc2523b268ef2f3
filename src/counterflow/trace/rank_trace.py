"""Trace of one rank, and the file through which it reaches rank 0."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from counterflow.trace.clock_sync import Clock, Offset, Stamps, clock_domain
from counterflow.trace.recorder import DTYPE, Recorder, Spans


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

    def on(self, clock: Clock) -> "RankTrace":
        """This trace on the clock of rank 0, where ``clock`` is this rank's."""
        spans = self.spans.copy()
        for end in ("start", "end"):
            spans[end] = clock.common(spans[end])
        return replace(self, spans=spans)


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
    trace = RankTrace(head["rank"], lanes, spans)
    if head["clock_domain"] == here["clock_domain"]:
        return trace, Clock()
    # A restarted rank has no stamps of the first synchronization: compare the last ones.
    both = min(len(here["stamps"]), len(head["stamps"]))
    pairs = zip(here["stamps"][-both:], head["stamps"][-both:], strict=True)
    clock = Clock([Offset.between(ours, theirs) for ours, theirs in pairs])
    return trace.on(clock), clock


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """First line of a file, and the offset of the next one."""
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)
