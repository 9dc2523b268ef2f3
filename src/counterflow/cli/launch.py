"""Start of the training program on several processes of this machine, over torch.distributed.elastic."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from counterflow.cli.console import EXIT_FAILURE, EXIT_SIGNAL, EXIT_USAGE


def main(arguments: Sequence[str]) -> int:
    """Train as ``arguments`` say: ``[--ranks N] [--max-restarts M] OVERRIDES``; the exit status.

    Unlike torchrun, it adds nothing to the lines of the ranks. A single process trains in place.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks", nargs="?", const="", default="1")
    parser.add_argument("--max-restarts", nargs="?", const="", default="0")
    options, overrides = parser.parse_known_args(arguments)
    for name, value, least in (("--ranks", options.ranks, 1), ("--max-restarts", options.max_restarts, 0)):
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            print(f"error: {name}={value}: must be a whole number of at least {least}", file=sys.stderr)
            return EXIT_USAGE
    if int(options.ranks) == 1 or any(argument in ("--help", "-h") for argument in overrides):
        from counterflow.cli.train import main as train

        sys.argv[1:] = overrides
        train()
        return 0
    return _run_ranks(int(options.ranks), int(options.max_restarts), overrides)


def _run_ranks(ranks: int, restarts: int, overrides: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the ranks themselves say what ended them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        max_restarts=restarts,
        monitor_interval=0.1,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        run_id=str(os.getpid()),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "counterflow.cli.train", *overrides)
    except ChildFailedError as error:
        # The agent ends the other ranks, of which some leave with their own status and some with that of a signal.
        ended = EXIT_SIGNAL + signal.SIGTERM
        statuses = [failure.exitcode for _, failure in sorted(error.failures.items())]
        own = [status for status in statuses if status > 0 and status != ended]
        return own[0] if own else ended if set(statuses) == {ended} else EXIT_FAILURE
    except SignalException as stop:
        return EXIT_SIGNAL + int(stop.sigval)
    return 0
