"""Report: ``python launch/report.py RUNS.. [--out DIR] [--title TEXT]``, tables and plots of finished runs."""

import sys

from counterflow.report.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
