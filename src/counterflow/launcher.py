"""What a program under ``launch/`` does around a run: processes, errors in one line, exit status."""

import os
import signal
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig

from counterflow.composition import check, command_line
from counterflow.config import TrainConfig
from counterflow.engine.execute import RunError
from counterflow.engine.job import prepare
from counterflow.metrics.files import RunDirectory
from counterflow.train import train
from counterflow.transport import ChannelError, connect, rendezvous

USAGE_ERROR = 2
RUN_ERROR = 1

_FIRST_SPEAKS = 10.0
"""Seconds."""


def launch(config: TrainConfig) -> None:
    """Train on the processes that the environment names. Raises ``ValueError`` before any process group exists."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    job = prepare(config, ranks, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    timeout = config.engine.timeout
    directory = RunDirectory(_run_path(config), config) if int(os.environ.get("RANK", "0")) == 0 else None
    world = connect(*rendezvous(timeout), timeout=timeout)
    train(job, world, directory)
    world.close()


def main(conf: Path) -> None:
    """Configure from the command line, and launch; ends the process with status 0 only if the run finished.

    A wrong configuration is one line from the first process of each node, as all of them find the same. What ends a
    run is one line from every rank that noticed, and the traceback where it was not foreseen.
    """

    def task(composed: DictConfig) -> None:
        try:
            launch(check(composed))
        except ValueError as error:
            _refuse(error)
        except (RunError, ChannelError) as error:
            abort(error)
        except KeyboardInterrupt:
            _exit(128 + signal.SIGINT)
        except Exception:
            traceback.print_exc()
            _exit(RUN_ERROR)

    try:
        command_line(conf, task)
    except ValueError as error:
        _refuse(error)


def abort(error: RunError | ChannelError) -> NoReturn:
    """Say what ended the run, and end the process at once, so that its neighbours notice."""
    cause = error.__cause__
    if isinstance(error, RunError) and cause is not None and not isinstance(cause, FloatingPointError):
        traceback.print_exception(cause)
    print(f"error: {error}", file=sys.stderr)
    _exit(RUN_ERROR)


def _refuse(error: ValueError) -> NoReturn:
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
