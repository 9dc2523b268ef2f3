"""Console of all programs: exit statuses, one-line errors of arguments, notes, closed pipes."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

_Item = TypeVar("_Item")

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 75
"""Try again later: runs of a sweep are left for the next stage."""
EXIT_SIGNAL = 128
"""Plus the number of the signal."""


class ArgumentParser(argparse.ArgumentParser):
    """Parser for the command lines that hydra does not read. Its errors are one line, like all errors here."""

    def __init__(self, **options: Any) -> None:
        """``options`` are those of argparse; ``epilog`` keeps its lines."""
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line from the first process of each node, and exit."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self.exit(EXIT_USAGE, f"error: {message}\n")
        # Torchrun kills all processes once one has ended: the first process of the node has to print before that.
        time.sleep(5.0)
        self.exit(EXIT_USAGE)


def add_exit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a program chooses the weights and the exit of a trained network."""
    parser.add_argument("--blocks", type=int, metavar="K", help="an early exit: blocks 1 to K with the readout of K")
    parser.add_argument("--best", action="store_true", help="the weights that checkpoint.best=true kept, not the last")


class NoteHandler(logging.Handler):
    """Prints warnings of the library as lines that begin with ``note:``, to the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {record.getMessage()}", file=sys.stderr, flush=True)


def install_cli_logging() -> None:
    """Print warnings of the library as notes; further calls have no effect."""
    logger = logging.getLogger("counterflow")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler(logging.WARNING))


def progress(items: Iterable[_Item], unit: str) -> Iterator[_Item]:
    """``items``, whose number so far is shown on a terminal's standard error."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn(f"{{task.completed:,}} {unit}"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(unit, total=None)
        for item in items:
            yield item
            shown.advance(task)


@contextmanager
def closed_pipe_allowed() -> Iterator[None]:
    """Within it, output may go to a reader that stops early, as in ``--help | head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
