"""Trace of one rank, its clock, the file through which it reaches rank 0, and the file of all traces.

Processes of one machine share the clock behind ``perf_counter``. Between machines, barriers bound the offset of two
clocks: no rank leaves a barrier before all ranks have entered it. Each barrier gives a lower and an upper bound, and
several barriers narrow the bounds.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from counterflow.trace.recorder import DTYPE, NAMES, Recorder, Spans

_CHUNK = 4096
"""Spans formatted at a time."""

_EVALUATION = frozenset(("evaluate", "predict", "receive", "send"))
"""Names of spans whose part is a test batch."""

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


def to_rank_0(times: NDArray[np.float64], offsets: Sequence[Offset]) -> NDArray[np.float64]:
    """Convert ``times`` to rank 0's clock, from a clock that drifts linearly between ``offsets``, sorted by time."""
    return times + np.interp(times, [o.at for o in offsets], [o.seconds for o in offsets])


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


def read(path: Path, reference: Path) -> tuple[RankTrace, Sequence[Offset]]:
    """Trace at ``path`` on the clock of rank 0, which wrote ``reference``, and the offsets of rank 0's clock.

    There are no offsets if the two ranks share a clock. Raises ``OSError``.
    """
    (head, begin), (here, _) = _head(path), _head(reference)
    lanes = {int(lane): name for lane, name in head["lanes"].items()}
    spans: Spans = np.memmap(path, DTYPE, "r", begin) if path.stat().st_size > begin else np.empty(0, DTYPE)
    offsets: Sequence[Offset] = ()
    if head["clock_domain"] != here["clock_domain"]:
        # A restarted rank has no stamps of the first synchronization: compare the last ones.
        both = min(len(here["stamps"]), len(head["stamps"]))
        pairs = zip(here["stamps"][-both:], head["stamps"][-both:], strict=True)
        offsets = [Offset.between(ours, theirs) for ours, theirs in pairs]
        spans = spans.copy()
        for end in ("start", "end"):
            spans[end] = to_rank_0(spans[end], offsets)
    return RankTrace(head["rank"], lanes, spans), offsets


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """First line of a file, and the offset of the next one."""
    with path.open("rb") as file:
        line = file.readline()
    return json.loads(line), len(line)


def write_chrome(file: BinaryIO, traces: Sequence[RankTrace], clock_error: float) -> None:
    """Write ``traces`` in the Chrome trace event format, for Perfetto and chrome://tracing. Raises ``OSError``.

    A rank is a process of the format, a lane is a thread, a span is an event. The traces are on one clock; time 0 is
    the start of their first span.

    ``clock_error``: seconds by which the clocks of two ranks may differ.
    """
    about = {"clock": "perf_counter of rank 0", "clock_error_us": round(1e6 * clock_error, 3)}
    file.write(b'{"displayTimeUnit": "ms", "otherData": %s, "traceEvents": [' % json.dumps(about).encode())
    zero = min((float(trace.spans["start"][0]) for trace in traces if len(trace.spans)), default=0.0)
    comma = b"\n"
    for trace in traces:
        for lines in _lines(trace, zero):
            file.write(comma + ",\n".join(lines).encode())
            comma = b",\n"
    file.write(b"\n]}\n")


def _lines(trace: RankTrace, zero: float) -> Iterator[list[str]]:
    """Chunks of events, one line per event."""
    names = [
        ("process_name", 0, {"name": f"rank {trace.rank}"}),
        ("process_sort_index", 0, {"sort_index": -trace.rank}),
    ]
    for lane, name in sorted(trace.lanes.items(), reverse=True):
        names += [("thread_name", lane, {"name": name}), ("thread_sort_index", lane, {"sort_index": -lane})]
    yield [
        json.dumps({"name": name, "ph": "M", "pid": trace.rank, "tid": tid, "args": arguments})
        for name, tid, arguments in names
    ]
    for i in range(0, len(trace.spans), _CHUNK):
        yield [_event(trace.rank, zero, *span) for span in trace.spans[i : i + _CHUNK].tolist()]


def _event(rank: int, zero: float, number: int, lane: int, n: int, part: int, start: float, end: float) -> str:
    name = NAMES[number]
    kind = "test_batch" if name in _EVALUATION else "micro_batch"
    arguments = f'"batch": {n}' + (f', "{kind}": {part}' if part >= 0 else "")
    # Round both ends to nanoseconds, not the duration: inner spans then stay within outer ones.
    begin, finish = round(1e9 * (start - zero)), round(1e9 * (end - zero))
    return (
        f'{{"name": "{name}", "ph": "X", "ts": {begin / 1000:.3f}, "dur": {(finish - begin) / 1000:.3f}, '
        f'"pid": {rank}, "tid": {lane}, "args": {{{arguments}}}}}'
    )
