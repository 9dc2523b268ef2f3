"""The command line of ``launch/doctor.py``."""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from counterflow.doctor.check import Status, table, verdict
from counterflow.doctor.local import run_here

_FAILED = 1
_REFUSED = 2
_INTERRUPTED = 128 + signal.SIGINT

_MEASURES = 15.0
"""Seconds from the start of a process, after which it begins no measurement."""
_LONGEST_WAIT = 60.0
"""Seconds."""
_REST = 30.0
"""Seconds of everything but measurements and waits, of ranks that are started here."""
_FIRST_SPEAKS = 5.0
"""Seconds."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors of this project."""
        _refuse(message)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_WAIT:
        raise argparse.ArgumentTypeError(f"{text}: seconds, more than 0 and at most {_LONGEST_WAIT:g}")
    return seconds


def main(program: Path, arguments: Sequence[str]) -> NoReturn:
    """Check, on the ranks of a launcher or on two of its own; the status is 0 if nothing failed, and else 1."""
    ends = time.monotonic() + _MEASURES
    parser = _Parser(prog="doctor.py", description="Checks of a machine before a run.")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs go (%(default)s)")
    parser.add_argument("--timeout", type=_seconds, default=5.0, help="seconds of any wait for a rank (%(default)g)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the messages")
    options = parser.parse_args(arguments)
    if "WORLD_SIZE" not in os.environ:
        try:
            command = [sys.executable, str(program), *arguments]
            sys.exit(run_here(command, _MEASURES + 4 * options.timeout + _REST))
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process wherever it waits
    # The process that only starts others does without torch, which takes seconds to load.
    from counterflow.doctor.rank import check_rank

    try:
        checks = check_rank(options.run_dir, options.timeout, options.quick, ends)
    except ValueError as error:
        _refuse(str(error))
    if checks:
        print(table(checks))
        print(f"{verdict(checks)}, in {time.monotonic() - ends + _MEASURES:.1f} s")
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads may wait for ranks that are gone, and nothing else ends them.
    os._exit(_FAILED if any(check.status is Status.FAIL for check in checks) else 0)


def _refuse(message: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        # Torchrun kills all processes once one has ended: the first process of the node has to speak before that.
        time.sleep(_FIRST_SPEAKS)
    sys.exit(_REFUSED)
