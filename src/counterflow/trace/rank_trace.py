"""What one rank did, as it is merged with the others."""

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
    """The spans of one rank."""

    rank: int
    lanes: Mapping[int, str]
    """What each lane is called."""
    spans: Spans
    """By their start; one that holds others comes before them."""

    @classmethod
    def of(cls, rank: int, recorder: Recorder) -> "RankTrace":
        """Of what this process has recorded, on its own clock."""
        spans = recorder.spans()
        lanes = {int(lane): recorder.lanes.get(int(lane), f"block {lane}") for lane in np.unique(spans["lane"])}
        return cls(rank, lanes, spans)

    def on(self, clock: Clock) -> "RankTrace":
        """The same on the clock of the first rank, whose ``clock`` this one's is."""
        spans = self.spans.copy()
        for end in ("start", "end"):
            spans[end] = clock.common(spans[end])
        return replace(self, spans=spans)


def write(path: Path, track: RankTrace, meetings: Sequence[Stamps]) -> None:
    """Leave ``track`` for the first rank, with what this rank knows of its clock. Raises ``OSError``."""
    head = {"rank": track.rank, "lanes": track.lanes, "machine": clock_domain(), "meetings": meetings}
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        file.write(track.spans.tobytes())


def read(path: Path, first: Path) -> tuple[RankTrace, Clock]:
    """What a rank left at ``path``, and its clock as the rank sees it that left ``first``. Raises ``OSError``."""
    (head, begin), (here, _) = _head(path), _head(first)
    lanes = {int(lane): name for lane, name in head["lanes"].items()}
    there = path.stat().st_size > begin
    spans: Spans = np.memmap(path, DTYPE, "r", begin) if there else np.empty(0, DTYPE)
    if head["machine"] == here["machine"]:
        return RankTrace(head["rank"], lanes, spans), Clock()
    # A rank that took the place of another one came too late for the first meeting, and left it out.
    both = min(len(here["meetings"]), len(head["meetings"]))
    pairs = zip(here["meetings"][-both:], head["meetings"][-both:], strict=True)
    clock = Clock([Offset.between(ours, theirs) for ours, theirs in pairs])
    return RankTrace(head["rank"], lanes, spans).on(clock), clock


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """The first line of a file, and where the next one begins."""
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)
