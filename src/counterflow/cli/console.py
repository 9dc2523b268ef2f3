"""Console of all programs: exit statuses, one-line errors of arguments, notes, closed pipes."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 75
"""Try again later: runs of a sweep are left for the next stage."""
EXIT_SIGNAL = 128
"""Plus the number of the signal."""


class ArgumentParser(argparse.ArgumentParser):
    """Parser for the command lines that hydra does not read. Its errors are one line, like all errors here."""

    def error(self, message: str) -> NoReturn:
        """Print one line from the first process of each node, and exit."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self.exit(EXIT_USAGE, f"error: {message}\n")
        # Torchrun kills all processes once one has ended: the first process of the node has to print before that.
        time.sleep(5.0)
        self.exit(EXIT_USAGE)


class NoteHandler(logging.Handler):
    """Prints warnings of the library as lines that begin with ``note:``, to the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {record.getMessage()}", file=sys.stderr, flush=True)


def install_cli_logging() -> None:
    """Print warnings of the library as notes; further calls have no effect."""
    logger = logging.getLogger("counterflow")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler(logging.WARNING))


@contextmanager
def closed_pipe_allowed() -> Iterator[None]:
    """Within it, output may go to a reader that stops early, as in ``--help | head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
