"""Recorder of the spans of one rank, 32 bytes each."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = (
    "target",
    "forward",
    "learn",
    "evaluate",
    "predict",
    "checkpoint",
    "resend",
    "receive",
    "emit",
    "send",
    "loss",
    "backward",
    "update",
    "scatter",
    "reduce",
    "gather",
)
"""Names of spans. Some lie within others: in ``target`` receive, emit, send; in ``forward`` receive, send; in ``learn``
loss, backward, update; in the meetings ``scatter``, ``reduce`` and ``gather`` receive, send, update. Pipeline schedules
have no ``learn``: their backward passes and updates stand alone."""

Spans = NDArray[np.void]
"""Array of `DTYPE`."""

DTYPE = np.dtype([("name", "<i4"), ("lane", "<i4"), ("n", "<i4"), ("part", "<i4"), ("start", "<f8"), ("end", "<f8")])
"""``name``: index into `NAMES`. ``lane``: block. ``n``: training batch. ``part``: micro-batch, or test batch of an
evaluation; -1 for neither. ``start``, ``end``: seconds."""

SHORT = 5e-6
"""Gaps of fewer seconds lie between two calls and get no span."""

_RECORD = struct.Struct("<iiiidd")
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


class Recorder:
    """Collects spans in the order in which they end, so inner spans come before outer ones."""

    def __init__(self) -> None:
        self.lanes: dict[int, str] = {}
        """Names of lanes that are not just ``block N``."""
        self._records = bytearray()

    now = staticmethod(perf_counter)
    """The time, as `add` and `rest` take it: seconds of the host."""

    def add(self, name: str, lane: int, n: int, start: Any, end: Any, part: int = -1) -> None:
        """Add a span.

        Args:
            name: one of `NAMES`.
            lane: block.
            n: training batch.
            start: its start, by `now`.
            end: its end, by `now`.
            part: micro-batch or test batch; -1 for neither.

        Raises:
            KeyError: ``name`` is none of `NAMES`.
        """
        self._records += _RECORD.pack(_NUMBERS[name], lane, n, part, start, end)

    def rest(self, name: str, lane: int, n: int, start: Any, end: Any) -> None:
        """Add spans called ``name`` for the time from ``start`` to ``end`` that no span covers yet.

        Gaps up to `SHORT` are left out. The arguments are those of `add`.
        """
        inner = []
        position = len(self._records) - _RECORD.size
        while position >= 0 and (found := _RECORD.unpack_from(self._records, position))[4] >= start:
            inner.append(found[4:])
            position -= _RECORD.size
        for begin, finish in (*reversed(inner), (end, end)):
            if begin - start > SHORT:
                self.add(name, lane, n, start, begin)
            start = finish

    def spans(self) -> Spans:
        """All spans so far, sorted by start; a span comes before those within it."""
        found = np.frombuffer(self._records, DTYPE)
        later_first = -np.arange(len(found))  # of two with the same times, the outer one ended last
        return found[np.lexsort((later_first, -found["end"], found["start"]))]


@contextmanager
def span(recorder: Recorder | None, name: str, lane: int, n: int, part: int = -1) -> Iterator[None]:
    """Context manager that records its duration, if there is a ``recorder``; arguments as in `Recorder.add`."""
    if recorder is None:
        yield
        return
    start = recorder.now()
    yield
    recorder.add(name, lane, n, start, recorder.now(), part)
