"""Chrome trace event format, for Perfetto and chrome://tracing.

A rank is a process of the format, a lane is a thread, a span is an event.
"""

import json
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import NAMES

_CHUNK = 4096
"""Spans formatted at a time."""

_EVALUATION = frozenset(("evaluate", "predict", "receive", "send"))
"""Names of spans whose part is a test batch."""


def write(file: BinaryIO, traces: Sequence[RankTrace], clock_error: float) -> None:
    """Write ``traces``, which are on one clock; time 0 is the start of their first span. Raises ``OSError``.

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
