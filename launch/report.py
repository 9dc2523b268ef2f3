"""Report: ``python launch/report.py RUNS.. [--out DIR] [--title TEXT]``, tables and figures of finished runs."""

import sys

from counterflow.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
