"""Train whole experiments in stages, on a machine that is there for minutes at a time::

    python launch/stages.py --minutes 9 -- experiment=table1,table1_resnet50,table1_cifar10 scale=full data.root=DIR

It is ``counterflow sweep``.
"""

import sys

from counterflow.cli.stages import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
