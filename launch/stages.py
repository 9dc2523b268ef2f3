"""Train whole experiments in stages, on a machine that is there for minutes at a time::

    python launch/stages.py --minutes 9 -- experiment=table1,table1_resnet50,table1_cifar10 scale=full data.root=DIR

Runs the jobs one after the other. When the time is over, the one that is under way writes a checkpoint; with
checkpoint.every=0, none begins that would outlast the stage, were it as long as the longest so far. While some remain,
the status is 75, and the same command goes on where it ended.
"""

import argparse
import subprocess
import sys
import time

from counterflow.cli.console import EXIT_INCOMPLETE
from counterflow.cli.train import main

KEY = "experiment="


def one_by_one(experiments: list[str], others: list[str], minutes: float) -> int:
    """Each in a process of its own, as hydra sweeps over one; a failure counts more than what remains."""
    ends = time.monotonic() + 60 * minutes
    statuses = set()
    for name in experiments:
        left = str(max(0.0, (ends - time.monotonic()) / 60))
        job = subprocess.run([sys.executable, __file__, "--minutes", left, "--", f"{KEY}{name}", *others])
        statuses.add(job.returncode)
    return next((status for status in sorted(statuses) if status not in (0, EXIT_INCOMPLETE)), max(statuses))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of the stage")
    parser.add_argument("overrides", nargs="+", help="as for launch/train.py, after --")
    options = parser.parse_args()
    names = [name for option in options.overrides if option.startswith(KEY) for name in option[len(KEY) :].split(",")]
    if len(names) > 1:
        sys.exit(one_by_one(names, [o for o in options.overrides if not o.startswith(KEY)], options.minutes))
    sys.argv[1:] = ["hydra.mode=MULTIRUN", *options.overrides]  # what hydra reads
    main(60 * options.minutes)
