"""Ends of a program: one line for a person, an exit status for a launcher."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from counterflow.cli.console import EXIT_FAILURE, EXIT_USAGE
from counterflow.data.reader_pool import ReaderError
from counterflow.engine.run_context import BlockError
from counterflow.metrics.callback import CallbackError
from counterflow.transport import ChannelError


def exit_now(status: int) -> NoReturn:
    """End the process without waiting for threads, which may be inside an operation that never completes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def exit_with_usage_error(error: ValueError | str) -> NoReturn:
    """Print one line from the first process of each node, as all of them find the same, and end the process."""
    text = " ".join(str(error).split())
    _record(text)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {text}", file=sys.stderr)
    else:
        # Torchrun kills all processes once one has ended: the first process of the node has to print before that.
        time.sleep(10.0)
    exit_now(EXIT_USAGE)


def exit_with_error(error: Exception) -> NoReturn:
    """Print the reason, with the traceback of an unforeseen one, and end the process, so that its neighbours notice."""
    if isinstance(error, BlockError | CallbackError | ChannelError | ReaderError):
        explain(error)
        # A report of all waits has a line for each rank; an exception of a block is one, whatever torch made of it.
        text = str(error) if isinstance(error, ChannelError) else " ".join(str(error).split())
    elif is_out_of_memory(error):
        text = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        traceback.print_exception(error)
        text = ""
    _record(text or f"{type(error).__name__}: {error}")
    if text:
        print(f"error: {text}", file=sys.stderr)
    exit_now(EXIT_FAILURE)


def explain(error: Exception) -> None:
    """Print the traceback of an unforeseen cause."""
    cause = error.__cause__
    foreseen = (
        cause is None or isinstance(cause, FloatingPointError | ValueError | ReaderError) or is_out_of_memory(cause)
    )
    if isinstance(error, BlockError) and not foreseen:
        traceback.print_exception(cause)


def is_out_of_memory(error: BaseException) -> bool:
    """Torch raises a plain RuntimeError for the memory of the CPU."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _record(text: str) -> None:
    """Leave ``text`` for torchrun's summary, in the file that its agent names."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")  # not by RankInfo: its error may be what is recorded
    if path:
        Path(path).write_text(json.dumps({"message": text, "timestamp": int(time.time())}))
