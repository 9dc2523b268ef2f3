"""Log handler of command-line programs: warnings of the library as lines that begin with ``note:``."""

import logging
import sys


class NoteHandler(logging.Handler):
    """Prints to the standard error of the moment, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"note: {record.getMessage()}", file=sys.stderr, flush=True)


def install_cli_logging() -> None:
    """Print warnings of the library as notes; further calls have no effect."""
    logger = logging.getLogger("counterflow")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler(logging.WARNING))
