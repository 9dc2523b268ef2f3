"""The command line of ``launch/report.py``."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from counterflow.report.comparison import compare
from counterflow.report.discovery import find
from counterflow.report.document import Document
from counterflow.report.run import read

_REFUSED = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors of this project."""
        self.exit(_REFUSED, f"error: {message}\n")


def main(arguments: Sequence[str]) -> int:
    """Write the report; the exit status. What is wrong with the arguments or a run is one line, and status 2."""
    parser = _Parser(prog="report.py", description="Tables and figures of finished runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders that hold them at any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where report.md and figures/ go (%(default)s)"
    )
    parser.add_argument("--title", default="Results", help="heading of the report (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        finished, unfinished = find(options.runs)
        if not finished:
            raise ValueError(f"{', '.join(map(str, options.runs))}: no run has finished")
        command = shlex.join(["python", "launch/report.py", *arguments])
        Document(options.title, command, compare(map(read, finished)), unfinished).write(options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return _REFUSED
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return _REFUSED
    print(options.out / "report.md")
    return 0
