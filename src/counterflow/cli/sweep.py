"""Sweeps: the runs of one command, one after the other in one process."""

import gc
import math
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from counterflow.cli.console import EXIT_FAILURE, EXIT_INCOMPLETE
from counterflow.cli.errors import explain
from counterflow.config import TrainConfig
from counterflow.engine.run_context import BlockError, PreemptedError
from counterflow.metrics.callback import Callback, CallbackError, RunInfo
from counterflow.metrics.run_dir import FinishedError, InUseError
from counterflow.signals import Signals
from counterflow.transport import ChannelError


class _Announcement(Callback):
    """Prints a line when a run begins."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, run: RunInfo) -> None:
        print(f"{self._path}: {'goes on' if run.start else 'begins'}", flush=True)


@dataclass
class Sweep:
    """Runs jobs, none of which is the end of the others, and counts how they ended."""

    run: Callable[[TrainConfig, Callback], object]
    ends: float = math.inf
    """A time of the monotonic clock, at which the run in progress stops after a checkpoint. If it writes none, it does
    not begin unless it would end before, were it as long as the longest so far."""
    longest: float = 0.0
    """Seconds."""
    signals: Signals | None = None
    counts: Counter[str] = field(default_factory=Counter)
    """Jobs that ``ran``, were ``skipped``, ``failed``, or are ``remaining``."""

    @property
    def status(self) -> int:
        if self.counts["failed"]:
            return EXIT_FAILURE
        return EXIT_INCOMPLETE if self.counts["remaining"] else 0

    def job(self, name: str, path: Path, configure: Callable[[], TrainConfig]) -> None:
        """Run one job in the folder ``path``; a line says why there is no run, or where it ended."""
        try:
            config = configure()
            self._start(replace(config, run=replace(config.run, dir=str(path))), path)
        except FinishedError:
            self._count("skipped", f"{path}: has finished, skipped")
        except InUseError as error:
            self._count("skipped", f"{error}, skipped")
        except ValueError as error:
            self._fail(name, error)
        except PreemptedError:
            if time.monotonic() < self.ends:
                raise
            self._count("remaining", f"{path}: remains")
        except (BlockError, CallbackError, ChannelError) as error:
            explain(error)
            self._fail(name, error)
        except Exception as error:
            traceback.print_exc()
            self._fail(name, f"{type(error).__name__}: {error}")
        gc.collect()  # a failed run leaves cycles behind, and threads that end with them

    def _start(self, config: TrainConfig, path: Path) -> None:
        is_too_late = time.monotonic() + (0.0 if config.checkpoint.every else self.longest) >= self.ends
        if is_too_late and not (path / "summary.json").exists():
            self._count("remaining", f"{path}: remains")
            return
        start = time.monotonic()
        with self._stopping_in_time():
            self.run(config, _Announcement(path))
        self.longest = max(self.longest, time.monotonic() - start)
        self.counts["ran"] += 1

    @contextmanager
    def _stopping_in_time(self) -> Iterator[None]:
        """Within it, a run that trains is asked to stop when the time is over."""
        ended = threading.Event()

        def ask() -> None:
            assert self.signals is not None
            ended.wait(self.ends - time.monotonic())
            while not ended.is_set() and not self.signals.request(signal.SIGTERM):
                ended.wait(0.1)

        if self.signals is not None and self.ends < math.inf:
            threading.Thread(target=ask, name="end of the stage", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _count(self, ending: str, line: str) -> None:
        print(line, flush=True)
        self.counts[ending] += 1

    def _fail(self, name: str, reason: object) -> None:
        print(f"error: {name}: {reason}", file=sys.stderr, flush=True)
        self.counts["failed"] += 1

    def __str__(self) -> str:
        counts = self.counts
        remaining = f", {counts['remaining']} remain" if counts["remaining"] else ""
        endings = ", ".join(f"{counts[ending]} {ending}" for ending in ("ran", "skipped", "failed"))
        return f"sweep of {counts.total()} runs: {endings}{remaining}"
