"""Report: ``python launch/report.py RUNS.. [--out DIR] [--title TEXT]``, tables, plots and a page."""

import sys

from counterflow.report.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
