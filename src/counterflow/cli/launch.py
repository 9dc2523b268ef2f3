"""What a program under ``launch/`` does around runs: processes, sweeps, errors in one line, exit status."""

import gc
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from counterflow.cli.hydra_app import check, job_name, run_hydra
from counterflow.config import TrainConfig
from counterflow.engine.execute import BlockError
from counterflow.engine.job import Job, build_job
from counterflow.engine.run_context import PreemptedError
from counterflow.metrics.run_dir import Found, InUseError, inspect_run_dir
from counterflow.rank_info import RankInfo
from counterflow.recovery.recoverable import connect_recoverable
from counterflow.recovery.supervisor import SupervisedRank, supervise
from counterflow.signals import Signals
from counterflow.trainer.rank0 import warn
from counterflow.trainer.resume import ResumePoint, open_run_dir
from counterflow.trainer.run import train
from counterflow.transport import ChannelError, Communicator, connect, rendezvous
from counterflow.transport.interfaces import interfaces

EXIT_USAGE = 2
EXIT_FAILURE = 1
EXIT_INCOMPLETE = 75
"""The status that says "try again later": runs of a sweep are left for the next stage."""

_FIRST_SPEAKS = 10.0
"""Seconds."""

_ASKS_EVERY = 0.1
"""Seconds."""


def run_job(config: TrainConfig, signals: Signals | None = None, life: SupervisedRank | None = None) -> None:
    """Train on the processes that the environment names. Raises ``ValueError`` before any process group exists.

    ``signals`` end the run after a checkpoint, by a `StoppedError`, if it writes any. ``life`` is this process's, where
    a keeper replaces ranks that are lost.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    job = build_job(config, ranks, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks > 1:
        interfaces(RankInfo.from_env())  # what is wrong with them leaves no folder behind
    grace = config.checkpoint.grace
    again = life is not None and life.restart_count > 0
    origin = _open(job, again) if int(os.environ.get("RANK", "0")) == 0 else None

    def halting(number: int) -> None:
        if signals is not None:
            message = f"error: no checkpoint within checkpoint.grace={grace:g} s of {signal.Signals(number).name}"
            signals.expire(number, grace, message)

    with origin.directory if origin is not None else nullcontext():
        comm = _connect(config, life, halting)

        def stop(number: int) -> bool:
            if comm.stop.possible:
                halting(number)
                comm.request_stop(number)
            return comm.stop.possible

        with signals.handled_by(stop) if signals is not None and config.checkpoint.every else nullcontext():
            train(job, comm, origin)
            comm.close()


def _connect(config: TrainConfig, life: SupervisedRank | None, on_halt: Callable[[int], None]) -> Communicator:
    timeout = config.engine.timeout
    info = RankInfo.from_env()
    store = rendezvous(info, timeout)
    if life is None or store is None:
        return connect(store, info.rank, info.size, timeout=timeout, on_stop=on_halt)
    return connect_recoverable(
        store,
        info.size,
        life,
        rank=info.rank,
        timeout=timeout,
        on_stop=on_halt,
        replay_bytes=config.engine.replay << 20,
    )


def _open(job: Job, again: bool) -> ResumePoint | None:
    """Where the run begins, or this process ``again``; None if a rank was lost when all had been said."""
    path = _run_path(job.config)
    restarted = again or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and inspect_run_dir(path, job.config) is Found.FINISHED:
        warn(f"{path}: has finished")
        return None
    return open_run_dir(job, path, (lambda text: None) if again else warn, alone=not again)


@dataclass
class Sweep:
    """The runs of one command, one after the other in this process: none is the end of the others."""

    ends: float = math.inf
    """A time of the monotonic clock, at which the run that is under way stops after a checkpoint. If it writes none, it
    does not begin unless it would end before, were it as long as the longest so far."""
    longest: float = 0.0
    """Seconds."""
    ran: int = 0
    skipped: int = 0
    failed: int = 0
    remaining: int = 0
    signals: Signals | None = None

    @property
    def jobs(self) -> int:
        return self.ran + self.skipped + self.failed + self.remaining

    @property
    def status(self) -> int:
        if self.failed:
            return EXIT_FAILURE
        return EXIT_INCOMPLETE if self.remaining else 0

    def job(self, composed: DictConfig) -> None:
        """One run, in a folder of its own; a line says why where there is none, or where it ended."""
        name = job_name(HydraConfig.get().overrides.task)
        try:
            config = check(composed, TrainConfig)
            path = Path(HydraConfig.get().sweep.dir) / name
            self._launch(replace(config, run=replace(config.run, dir=str(path))), path)
        except InUseError as error:
            self._skip(error)
        except ValueError as error:
            self._fail(name, error)
        except PreemptedError:
            if time.monotonic() < self.ends:
                raise
            self._remain(path)
        except (BlockError, ChannelError) as error:
            _explain(error)
            self._fail(name, error)
        except Exception as error:
            traceback.print_exc()
            self._fail(name, f"{type(error).__name__}: {error}")
        gc.collect()  # what failed leaves cycles behind, and threads that end with them

    def _launch(self, config: TrainConfig, path: Path) -> None:
        found = inspect_run_dir(path, config)
        if found is Found.FINISHED:
            self._skip(f"{path}: has finished")
        elif found is Found.RUNNING:
            self._skip(f"{path}: another process is at it")
        elif time.monotonic() + (0.0 if config.checkpoint.every else self.longest) >= self.ends:
            self._remain(path)
        else:
            print(f"{path}: {'was interrupted' if found is Found.INTERRUPTED else 'begins'}", flush=True)
            start = time.monotonic()
            with self._ending():
                run_job(config, self.signals)
            self.longest = max(self.longest, time.monotonic() - start)
            self.ran += 1

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Within it, a run that trains is asked to stop when it is time."""
        ended = threading.Event()

        def ask() -> None:
            assert self.signals is not None
            ended.wait(self.ends - time.monotonic())
            while not ended.is_set() and not self.signals.request(signal.SIGTERM):
                ended.wait(_ASKS_EVERY)

        if self.signals is not None and self.ends < math.inf:
            threading.Thread(target=ask, name="end of the stage", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _remain(self, what: object) -> None:
        print(f"{what}: remains", flush=True)
        self.remaining += 1

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

    A sweep ends after ``seconds``; the status is `REMAINS` if some of it is left.

    A wrong configuration is one line from the first process of each node, as all of them find the same. What ends a
    run is one line from every rank that noticed, and the traceback where it was not foreseen.
    """
    signals = Signals()
    sweep = Sweep(time.monotonic() + seconds, signals=signals)

    def task(composed: DictConfig) -> None:
        try:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                sweep.job(composed)
            else:
                config = check(composed, TrainConfig)
                if config.engine.recovery == "rank" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                    config = replace(config, run=replace(config.run, dir=str(_run_path(config))))  # for all lives
                    life = supervise(signals, RankInfo.from_env().rank)  # which has returned in a process of its own
                    run_job(config, Signals(), life)
                else:
                    run_job(config, signals)
        except PreemptedError as stop:
            if os.environ.get("RANK", "0") == "0":
                name = signal.Signals(stop.signal).name
                warn(f"{name}: stopped after batch {stop.batches - 1}, with a checkpoint; run.resume=auto goes on")
            _exit(128 + stop.signal)
        except ValueError as error:
            _refuse(error)
        except (BlockError, ChannelError) as error:
            exit_with_error(error)
        except Exception as error:
            if _out_of_memory(error):
                print(f"error: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
            else:
                traceback.print_exc()
            _exit(EXIT_FAILURE)

    try:
        run_hydra(conf, task)
    except ValueError as error:
        _refuse(error)
    if sweep.jobs:
        print(sweep)
        _exit(sweep.status)


def exit_with_error(error: BlockError | ChannelError) -> NoReturn:
    """Say what ended the run, and end the process at once, so that its neighbours notice."""
    _explain(error)
    # A report of who waits for whom has a line for each; what a block raised is one, whatever torch made of it.
    text = str(error) if isinstance(error, ChannelError) else " ".join(str(error).split())
    print(f"error: {text}", file=sys.stderr)
    _exit(EXIT_FAILURE)


def _explain(error: BlockError | ChannelError) -> None:
    """The traceback of what was not foreseen."""
    cause = error.__cause__
    foreseen = cause is None or isinstance(cause, FloatingPointError | ValueError) or _out_of_memory(cause)
    if isinstance(error, BlockError) and not foreseen:
        traceback.print_exception(cause)


def _out_of_memory(error: BaseException) -> bool:
    """Torch raises a plain RuntimeError for the memory of the CPU."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _refuse(error: ValueError | str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # one line, whatever was typed
    else:
        # Torchrun kills all processes once one has ended: the first process of the node has to speak before that.
        time.sleep(_FIRST_SPEAKS)
    _exit(EXIT_USAGE)


def _exit(status: int) -> NoReturn:
    """End now: waiting threads may be inside an operation that nothing completes any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_path(config: TrainConfig) -> Path:
    name = f"{config.algorithm.name}-{config.model.name}-{config.data.name}-{_began():%Y%m%d-%H%M%S}"
    return Path(config.run.dir or Path("runs") / name)


def _began() -> datetime:
    """When this process began; under torchrun, when torchrun did: what it restarts goes on in the same folder."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
            lines = Path("/proc/stat").read_text().splitlines()
            boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
            return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"))
        except (OSError, StopIteration):  # not Linux
            pass
    return datetime.now()
