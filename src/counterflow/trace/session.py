"""A rank's part in the trace of a run (``trace=true``)."""

import shutil
from collections.abc import Callable
from pathlib import Path

from counterflow.checkpoint.atomic_write import atomic_write
from counterflow.trace import chrome, rank_trace
from counterflow.trace.clock_sync import barrier_stamps
from counterflow.trace.rank_trace import RankTrace
from counterflow.trace.recorder import Recorder
from counterflow.transport import Communicator

TRACE = "trace.json"
"""In a run directory, for Perfetto and chrome://tracing."""
TIMELINE = "timeline.png"


class TraceSession:
    """From the beginning of a run to its end, on all ranks: the first one then merges what each has recorded."""

    def __init__(self, comm: Communicator, folder: Path, log: Callable[[str], None]) -> None:
        """``folder`` is the run directory; ``log`` hears of disks that take no more."""
        self.recorder = Recorder()
        self._comm = comm
        self._folder = folder
        self._tell = log
        stamps = barrier_stamps(self._barrier, "start")
        # Who takes another one's place finds that the others have met.
        self._meetings = [] if comm.restart_count else [stamps]

    def finish(self, title: str) -> None:
        """Write `TRACE`, and `TIMELINE` with ``title``; returns on other ranks before that is done."""
        comm = self._comm
        self._meetings.append(barrier_stamps(self._barrier, "end"))
        failure = ""
        try:
            rank_trace.write(self._path(comm.rank), RankTrace.of(comm.rank, self.recorder), self._meetings)
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
                self._tell(f"no trace was written ({failures[0]})")
            shutil.rmtree(self._path(0).parent, ignore_errors=True)

    def _merge(self, title: str) -> None:
        from counterflow.trace import timeline  # matplotlib takes its time, and only this needs it

        paths = [self._path(rank) for rank in range(self._comm.size)]
        left = [rank_trace.read(path, paths[0]) for path in paths]
        tracks = [found for found, _ in left]
        error = max(clock.error for _, clock in left)
        atomic_write(self._folder / TRACE, lambda file: chrome.write(file, tracks, error))
        timeline.draw([timeline.Panel(title, tracks)], self._folder / TIMELINE)

    def _path(self, rank: int) -> Path:
        return self._folder / "spans" / f"rank-{rank}"

    def _barrier(self, purpose: str) -> None:
        self._comm.all_gather(None, purpose)
