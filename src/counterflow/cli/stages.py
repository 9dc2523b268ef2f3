"""Command line of ``counterflow sweep`` and ``launch/stages.py``: whole experiments, in stages if time is short."""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence

from counterflow.cli.console import EXIT_INCOMPLETE, ArgumentParser

_KEY = "experiment="
_EXAMPLES = """\
examples:
  counterflow sweep algorithm=bll,al seed=1,2,3 run.dir=runs/rules
  counterflow sweep --minutes 9 experiment=table1,fig3a scale=cpu data.root=DIR"""


def main(arguments: Sequence[str]) -> int:
    """Run every combination of the values in ``arguments``, one after the other in one process; the exit status.

    When the time is over, the run that is under way writes a checkpoint; with checkpoint.every=0, none begins that
    would outlast the stage, were it as long as the longest so far. While some remain, the status is `EXIT_INCOMPLETE`,
    and the same command goes on where it ended.
    """
    parser = ArgumentParser(
        prog="counterflow sweep",
        description="Train every combination of options; a finished run is skipped, so the same command goes on.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=math.inf, help="end after so long; 75 says that some remain"
    )
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE,VALUE", help="as for counterflow train")
    options = parser.parse_intermixed_args(arguments)
    names = [name for option in options.overrides if option.startswith(_KEY) for name in option[len(_KEY) :].split(",")]
    if len(names) > 1:
        others = [option for option in options.overrides if not option.startswith(_KEY)]
        return _one_by_one(names, others, options.minutes)
    from counterflow.cli.train import main as train  # a parser needs no torch

    sys.argv[1:] = ["hydra.mode=MULTIRUN", *options.overrides]  # what hydra reads
    train(60 * options.minutes)
    return 0


def _one_by_one(experiments: Sequence[str], others: Sequence[str], minutes: float) -> int:
    """Each in a process of its own, as hydra sweeps over one; a failure counts more than what remains."""
    ends = time.monotonic() + 60 * minutes
    statuses = set()
    for name in experiments:
        left = str(max(0.0, (ends - time.monotonic()) / 60))
        command = [sys.executable, "-P", "-m", "counterflow", "sweep", "--minutes", left, f"{_KEY}{name}", *others]
        statuses.add(subprocess.run(command).returncode)
    return next((status for status in sorted(statuses) if status not in (0, EXIT_INCOMPLETE)), max(statuses))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not minutes >= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of minutes of at least 0")
    return minutes
