"""What one rank did, and when: all of its spans, 32 bytes each."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

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
)
"""Actions, and what is done within them: in ``target`` receive, emit, send; in ``forward`` receive, send; in ``update``
loss, backward, update. A pipeline schedule has no ``update``: its backward passes and updates stand alone."""

Spans = NDArray[np.void]
"""Of `DTYPE`."""

DTYPE = np.dtype([("name", "<i4"), ("lane", "<i4"), ("n", "<i4"), ("part", "<i4"), ("start", "<f8"), ("end", "<f8")])
"""``name`` is an index of `NAMES`, ``lane`` a block, ``n`` a training batch, ``part`` the micro-batch or, of an
evaluation, the test batch (-1: neither), ``start`` and ``end`` are seconds of some clock."""

SHORT = 5e-6
"""Seconds that pass between two calls, and are worth no span."""

_RECORD = struct.Struct("<iiiidd")
_NUMBERS = {name: number for number, name in enumerate(NAMES)}


class Recorder:
    """Spans are added as they end; those within another one, before it."""

    def __init__(self) -> None:
        self.lanes: dict[int, str] = {}
        """What a lane is called, if it is more than its block."""
        self._records = bytearray()

    def add(self, name: str, lane: int, n: int, start: float, end: float, part: int = -1) -> None:
        """``start`` and ``end`` are seconds of ``perf_counter``."""
        self._records += _RECORD.pack(_NUMBERS[name], lane, n, part, start, end)

    def rest(self, name: str, lane: int, n: int, start: float, end: float) -> None:
        """Add, under ``name``, the time from ``start`` to ``end`` that no span so far covers, but for `SHORT` gaps."""
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
        """All spans so far, by their start; one that holds others comes before them."""
        found = np.frombuffer(self._records, DTYPE)
        return found[np.lexsort((-found["end"], found["start"]))]


@contextmanager
def span(recorder: Recorder | None, name: str, lane: int, n: int, part: int = -1) -> Iterator[None]:
    """Record the time within it, if there is a ``recorder``."""
    start = perf_counter()
    yield
    if recorder is not None:
        recorder.add(name, lane, n, start, perf_counter(), part)
