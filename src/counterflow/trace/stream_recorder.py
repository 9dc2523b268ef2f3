"""Recorder of spans on a GPU, by its own clock: events on the stream of the blocks in place of the host's time."""

from collections import deque
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import torch

from counterflow.trace.recorder import Recorder, Spans
from counterflow.transport.cuda_device import CudaDevice, DeviceEvent

_PENDING = 1024
"""Spans from which on those are resolved whose events are over."""


class _Mark:
    """Event between two spans, timed from the mark before it: CUDA gives times in float32, which are coarse after a
    while."""

    def __init__(self, event: DeviceEvent, before: "_Mark | None") -> None:
        self.event = event
        self._before = before
        self._seconds = 0.0

    def seconds(self) -> float:
        """Seconds on the device since the first mark. The device must have come to this one."""
        chain: list[_Mark] = [self]
        while (before := chain[-1]._before) is not None:
            chain.append(before)
        for earlier, mark in pairwise(reversed(chain)):
            mark._seconds = earlier._seconds + earlier.event.elapsed_time(mark.event) / 1e3
            mark._before = None
        return self._seconds


class StreamRecorder(Recorder):
    """Spans as the stream did them: compute takes the time of its kernels, however early the host started them, and a
    wait is time for which the stream had nothing to do.

    Marks come in the order of the stream, and times keep it, so that spans lie within each other as they do by the
    host's clock. The device's clock is put on the host's at the start and at `spans`, and is taken to drift linearly
    between. Nothing waits for the device before.
    """

    def __init__(self, device: CudaDevice) -> None:
        super().__init__()
        self._device = device
        self._resolved = Recorder()
        """Spans on the device's clock."""
        self._pending: deque[tuple[bool, str, int, int, Any, Any, int]] = deque()
        self._last = _Mark(device.stamp(), None)
        self._last.event.synchronize()
        self._start = perf_counter()
        """Seconds of the host at the first mark, which is time 0 of the device."""

    def now(self) -> Any:
        self._last = _Mark(self._device.stamp(), self._last)
        return self._last

    def add(self, name: str, lane: int, n: int, start: Any, end: Any, part: int = -1) -> None:
        self._put(False, name, lane, n, start, end, part)

    def rest(self, name: str, lane: int, n: int, start: Any, end: Any) -> None:
        self._put(True, name, lane, n, start, end, -1)

    def spans(self) -> Spans:
        """All spans so far on the host's clock; waits until the device has come to their ends."""
        last = self.now()
        last.event.synchronize()
        host, device = perf_counter() - self._start, last.seconds()
        while self._pending:
            self._resolve()
        spans = self._resolved.spans().copy()
        for edge in ("start", "end"):
            spans[edge] = self._start + np.interp(spans[edge], [0.0, device], [0.0, host])
        return spans

    def _put(self, *span: Any) -> None:
        self._pending.append(span)
        while len(self._pending) > _PENDING and self._pending[0][5].event.query():
            self._resolve()

    def _resolve(self) -> None:
        is_rest, name, lane, n, start, end, part = self._pending.popleft()
        if is_rest:
            self._resolved.rest(name, lane, n, start.seconds(), end.seconds())
        else:
            self._resolved.add(name, lane, n, start.seconds(), end.seconds(), part)


def make_recorder(device: torch.device) -> Recorder:
    """Recorder of the spans of blocks on ``device``."""
    return StreamRecorder(CudaDevice(device)) if device.type == "cuda" else Recorder()
