"""Train a sweep in stages: ``python launch/stages.py --minutes 10 -- experiment=table1 scale=full data.root=DIR``.

Runs the sweep's jobs one after the other and begins none once the time is used; then the status is 75, and the same
command goes on where it ended. A job that has begun is finished first; one that is killed is done again from its start.
So a stage has to be long enough for one job, until runs have checkpoints.
"""

import argparse
import sys
from pathlib import Path

from counterflow.launcher import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="begin no job after so many")
    parser.add_argument("overrides", nargs="+", help="as for launch/train.py, after --")
    options = parser.parse_args()
    sys.argv[1:] = ["hydra.mode=MULTIRUN", *options.overrides]  # what hydra reads
    main(Path(__file__).parent.parent / "conf", 60 * options.minutes)
