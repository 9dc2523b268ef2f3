"""Recording and merging of the trace of a run (``trace=true``)."""

import logging
import shutil
from pathlib import Path

import torch

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.trace import rank_trace
from counterflow.trace.rank_trace import RankTrace, barrier_stamps
from counterflow.trace.stream_recorder import make_recorder
from counterflow.transport import Communicator

_log = logging.getLogger(__name__)

TRACE = "trace.json"
"""File in the run directory, for Perfetto and chrome://tracing."""
TIMELINE = "timeline.png"


class TraceSession:
    """Records the spans of one rank; rank 0 merges those of all ranks at the end.

    If the disk is full, no trace is written, with a warning.
    """

    def __init__(self, comm: Communicator, folder: Path, device: torch.device) -> None:
        """Synchronize the clocks of all ranks; ``folder`` is the run directory, shared by all ranks, and blocks compute
        on ``device``."""
        self.recorder = make_recorder(device)
        self._comm = comm
        self._folder = folder
        stamps = barrier_stamps(self._barrier, "start")
        # A restarted rank passes the first barriers alone, so they say nothing about its clock.
        self._stamps = [] if comm.restart_count else [stamps]

    def finish(self, title: str) -> None:
        """Write `TRACE`, and `TIMELINE` with ``title``. All ranks call this; only rank 0 waits for the files."""
        comm = self._comm
        self._stamps.append(barrier_stamps(self._barrier, "end"))
        failure = ""
        try:
            rank_trace.write(self._path(comm.rank), RankTrace.of(comm.rank, self.recorder), self._stamps)
        except OSError as error:
            failure = f"{self._path(comm.rank)}: {error.strerror}"
        failures = [failure for failure in comm.all_gather(failure, "spans") if failure]
        if comm.rank == 0:
            try:
                if not failures:
                    self._merge(title)
            except OSError as error:
                failures = [f"{self._folder / TRACE}: {error.strerror}"]
            if failures:
                _log.warning(f"no trace was written ({failures[0]})")
            shutil.rmtree(self._path(0).parent, ignore_errors=True)

    def _merge(self, title: str) -> None:
        from counterflow.trace import timeline  # imports matplotlib, which is slow

        paths = [self._path(rank) for rank in range(self._comm.size)]
        traces, clocks = zip(*(rank_trace.read(path, paths[0]) for path in paths), strict=True)
        error = max((offset.error for offsets in clocks for offset in offsets), default=0.0)
        atomic_write(self._folder / TRACE, lambda file: rank_trace.write_chrome(file, traces, error))
        timeline.draw([timeline.Panel(title, traces)], self._folder / TIMELINE)

    def _path(self, rank: int) -> Path:
        return self._folder / "spans" / f"rank-{rank}"

    def _barrier(self, purpose: str) -> None:
        self._comm.all_gather(None, purpose)
