"""Command line of ``launch/report.py``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from counterflow.report.document import write_report
from counterflow.report.groups import compare
from counterflow.report.runs import find_runs, read_run

_REFUSED = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, like all errors of this project."""
        self.exit(_REFUSED, f"error: {message}\n")


def main(arguments: Sequence[str]) -> int:
    """Write the report and return the exit status.

    A wrong argument or a damaged run gives one line on stderr, and status 2.
    """
    parser = _Parser(prog="report.py", description="Tables and plots of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders that hold them at any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where report.md and figures/ go (%(default)s)"
    )
    parser.add_argument("--title", default="Results", help="heading of the report (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        finished, unfinished = find_runs(options.runs)
        if not finished:
            raise ValueError(f"{', '.join(map(str, options.runs))}: no run has finished")
        command = shlex.join(["python", "launch/report.py", *arguments])
        write_report(options.out, options.title, command, compare(map(read_run, finished)), unfinished)
    except (ValueError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        print(f"error: {reason}", file=sys.stderr)
        return _REFUSED
    print(options.out / "report.md")
    return 0
