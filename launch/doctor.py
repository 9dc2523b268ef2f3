"""Check a machine before a run: ``python launch/doctor.py`` on two processes of its own, or on those of the real job::

torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=4 launch/doctor.py [--run-dir DIR] [--quick]
"""

import sys

from counterflow.doctor.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
