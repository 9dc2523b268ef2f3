"""What a program under ``launch/`` does around runs: processes, sweeps, errors in one line, exit status."""

import gc
import math
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from counterflow.composition import check, command_line, job_name
from counterflow.config import TrainConfig
from counterflow.engine.execute import RunError
from counterflow.engine.job import prepare
from counterflow.metrics.files import Found, InUseError, RunDirectory, find
from counterflow.train import train
from counterflow.transport import ChannelError, connect, rendezvous

USAGE_ERROR = 2
RUN_ERROR = 1
REMAINS = 75
"""The status that says "try again later": runs of a sweep are left for the next stage."""

_FIRST_SPEAKS = 10.0
"""Seconds."""

_INTERRUPTED = 128 + signal.SIGINT
_UNWINDS_WITHIN = 5.0
"""Seconds from an interrupt to the end of the process."""


def launch(config: TrainConfig, redo: bool = False) -> None:
    """Train on the processes that the environment names. Raises ``ValueError`` before any process group exists.

    ``redo`` is `RunDirectory`'s.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    job = prepare(config, ranks, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    timeout = config.engine.timeout
    directory = RunDirectory(_run_path(config), config, redo) if int(os.environ.get("RANK", "0")) == 0 else None
    with directory or nullcontext():
        world = connect(*rendezvous(timeout), timeout=timeout)
        train(job, world, directory)
        world.close()


@dataclass
class Sweep:
    """The runs of one command, one after the other in this process: none is the end of the others."""

    ends: float = math.inf
    """A time of the monotonic clock. No run begins that would not end before, were it as long as the longest so far."""
    longest: float = 0.0
    """Seconds."""
    ran: int = 0
    skipped: int = 0
    failed: int = 0
    remaining: int = 0

    @property
    def jobs(self) -> int:
        return self.ran + self.skipped + self.failed + self.remaining

    @property
    def status(self) -> int:
        if self.failed:
            return RUN_ERROR
        return REMAINS if self.remaining else 0

    def job(self, composed: DictConfig) -> None:
        """One run, in a folder of its own; a line says why where there is none, or where it ended."""
        name = job_name(HydraConfig.get().overrides.task)
        try:
            config = check(composed)
            path = Path(HydraConfig.get().sweep.dir) / name
            self._launch(replace(config, run=replace(config.run, dir=str(path))), path)
        except InUseError as error:
            self._skip(error)
        except ValueError as error:
            self._fail(name, error)
        except (RunError, ChannelError) as error:
            _explain(error)
            self._fail(name, error)
        except Exception as error:
            traceback.print_exc()
            self._fail(name, f"{type(error).__name__}: {error}")
        gc.collect()  # what failed leaves cycles behind, and threads that end with them

    def _launch(self, config: TrainConfig, path: Path) -> None:
        found = find(path, config)
        if found is Found.FINISHED:
            self._skip(f"{path}: has finished")
        elif found is Found.RUNNING:
            self._skip(f"{path}: another process is at it")
        elif time.monotonic() + self.longest >= self.ends:
            print(f"{path}: remains", flush=True)
            self.remaining += 1
        else:
            print(f"{path}: {'was interrupted, begins anew' if found is Found.INTERRUPTED else 'begins'}", flush=True)
            start = time.monotonic()
            launch(config, redo=True)
            self.longest = max(self.longest, time.monotonic() - start)
            self.ran += 1

    def _skip(self, reason: object) -> None:
        print(f"{reason}, skipped", flush=True)
        self.skipped += 1

    def _fail(self, name: str, reason: object) -> None:
        print(f"error: {name}: {reason}", file=sys.stderr, flush=True)
        self.failed += 1

    def __str__(self) -> str:
        remaining = f", {self.remaining} remain" if self.remaining else ""
        return f"sweep of {self.jobs} runs: {self.ran} ran, {self.skipped} skipped, {self.failed} failed{remaining}"


class SweepGuard(Callback):
    """Refuses what makes no sense as a sweep, before hydra writes anything. Configured in ``conf/train.yaml``."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        experiments = [o for o in config.hydra.overrides.task if o.startswith("experiment=")]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Hydra would start every rank's sweep, and a failed job of one rank would leave the others waiting.
            _refuse(
                "a sweep runs on one process: python launch/train.py .., whose results are those of many processes; "
                "hydra.mode=RUN makes it a single run"
            )
        if experiments and config.run.experiment is None:
            _refuse(f"{experiments[0]}: one experiment a command, as each has a sweep of its own")


def main(conf: Path, seconds: float = math.inf) -> None:
    """Configure from the command line, and launch; ends the process with status 0 only if every run finished.

    No run of a sweep begins that might not end within ``seconds``; the status is `REMAINS` if some are left.

    A wrong configuration is one line from the first process of each node, as all of them find the same. What ends a
    run is one line from every rank that noticed, and the traceback where it was not foreseen.
    """
    end_when_interrupted()
    sweep = Sweep(time.monotonic() + seconds)

    def task(composed: DictConfig) -> None:
        try:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                sweep.job(composed)
            else:
                launch(check(composed))
        except ValueError as error:
            _refuse(error)
        except (RunError, ChannelError) as error:
            abort(error)
        except KeyboardInterrupt:
            _exit(_INTERRUPTED)
        except Exception:
            traceback.print_exc()
            _exit(RUN_ERROR)

    try:
        command_line(conf, task)
    except ValueError as error:
        _refuse(error)
    except KeyboardInterrupt:  # between two runs of a sweep
        _exit(_INTERRUPTED)
    if sweep.jobs:
        print(sweep)
        _exit(sweep.status)


def end_when_interrupted() -> None:
    """Let SIGINT end this process: by a KeyboardInterrupt, which leaves the terminal as it was, and after some seconds
    or at the second time whatever became of it. Python loses an exception that is raised in a destructor or a callback.
    """

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: _exit(_INTERRUPTED))
        watch = threading.Timer(_UNWINDS_WITHIN, _exit, [_INTERRUPTED])
        watch.daemon = True
        watch.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def abort(error: RunError | ChannelError) -> NoReturn:
    """Say what ended the run, and end the process at once, so that its neighbours notice."""
    _explain(error)
    print(f"error: {error}", file=sys.stderr)
    _exit(RUN_ERROR)


def _explain(error: RunError | ChannelError) -> None:
    """The traceback of what was not foreseen."""
    cause = error.__cause__
    if isinstance(error, RunError) and cause is not None and not isinstance(cause, FloatingPointError):
        traceback.print_exception(cause)


def _refuse(error: ValueError | str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    else:
        # Torchrun kills all processes once one has ended: the first process of the node has to speak before that.
        time.sleep(_FIRST_SPEAKS)
    _exit(USAGE_ERROR)


def _exit(status: int) -> NoReturn:
    """End now: waiting threads may be inside an operation that nothing completes any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_path(config: TrainConfig) -> Path:
    name = f"{config.algorithm.name}-{config.model.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path(config.run.dir or Path("runs") / name)
