"""Command line of ``launch/report.py``."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from counterflow.cli.console import ArgumentParser
from counterflow.report.content import Report
from counterflow.report.document import write_report
from counterflow.report.groups import compare
from counterflow.report.runs import find_runs, read_run

_EXAMPLES = """\
examples:
  counterflow report runs/mine runs/yours
  counterflow report runs/table1-cpu --out results --title 'Table 1'"""


def main(arguments: Sequence[str]) -> int:
    """Write the report and return the exit status.

    A wrong argument or a damaged run gives one line on stderr, and exit status 2.
    """
    parser = ArgumentParser(
        prog="counterflow report", description="Tables and plots of finished runs.", epilog=_EXAMPLES
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, or folders that hold them at any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where report.md, index.html and figures/ go (%(default)s)"
    )
    parser.add_argument("--title", default="Results", help="heading of the report (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        finished, unfinished = find_runs(options.runs)
        if not finished:
            raise ValueError(f"{', '.join(map(str, options.runs))}: no run has finished")
        report = Report(
            options.title,
            command=shlex.join(["python", "launch/report.py", *arguments]),
            comparisons=compare(map(read_run, finished)),
            unfinished=unfinished,
        )
        write_report(options.out, report)
        has_page = _write_page(options.out, report)
    except (ValueError, OSError) as error:
        parser.error(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error))
    print(options.out / "report.md")
    if has_page:
        print(options.out / "index.html")
    else:
        print("note: index.html is not written: it needs bokeh (pip install 'counterflow[report]')", file=sys.stderr)
    return 0


def _write_page(folder: Path, report: Report) -> bool:
    """Write the page, and return False if bokeh, which it needs, is not installed."""
    try:
        from counterflow.report.page import write_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bokeh":
            raise
        return False
    write_page(folder, report)
    return True
