"""What a program under ``launch/`` does around a run: processes, errors in one line, exit status."""

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from counterflow.composition import configure
from counterflow.config import TrainConfig
from counterflow.engine.execute import RunError
from counterflow.engine.job import prepare
from counterflow.metrics.files import RunDirectory
from counterflow.train import train
from counterflow.transport import ChannelError, connect, rendezvous

USAGE_ERROR = 2
RUN_ERROR = 1


def launch(config: TrainConfig) -> None:
    """Train on the processes that the environment names. Raises ``ValueError`` before any process group exists."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    job = prepare(config, ranks, int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    timeout = config.engine.timeout
    directory = RunDirectory(_run_path(config), config) if int(os.environ.get("RANK", "0")) == 0 else None
    world = connect(*rendezvous(timeout), timeout=timeout)
    world.open_edges(job.topology, job.backend, job.device)
    train(job, world, directory)
    world.close()


def main(conf: Path, overrides: Sequence[str]) -> None:
    """Configure and launch; ends the process with status 0 only if the run finished.

    A wrong configuration is one line from the first process of each node, as all of them find the same. What ends a
    run is one line from every rank that noticed, and the traceback where it was not foreseen.
    """
    try:
        launch(configure(conf, overrides))
    except ValueError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except (RunError, ChannelError) as error:
        cause = error.__cause__
        if isinstance(error, RunError) and cause is not None and not isinstance(cause, FloatingPointError):
            traceback.print_exception(cause)
        print(f"error: {error}", file=sys.stderr)
        _exit(RUN_ERROR)


def _exit(status: int) -> None:
    """End now: waiting threads may be inside an operation that nothing completes any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run_path(config: TrainConfig) -> Path:
    name = f"{config.algorithm.name}-{config.model.name}-{config.data.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path(config.run.dir or Path("runs") / name)
