"""A process that does nothing but begin its rank anew when that was killed (``engine.recovery=rank``)."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from counterflow.signals import Signals, end

_LIVES = 100
"""What is killed more often is ended by something that will not stop."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Life:
    """One process of a rank."""

    number: int
    """Processes that were this rank before."""
    name: str | None
    """What the first of them told the keeper; None if this is the first, or it told nothing."""
    log: Callable[[str], None]


def keep(signals: Signals) -> Life:
    """Returns in every life of this process's rank; the keeper itself ends as the last one of them does.

    Must be called before this process computes anything: what is forked has no threads but one.
    """
    number, name = 0, ""
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(here)
            # Whoever kills the keeper means the rank.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            return Life(number, name or None, partial(_write, there))
        os.close(there)
        with signals.handled_by(partial(_pass_on, pid)), os.fdopen(here, "rb") as pipe:
            told = pipe.read().decode()  # until the rank has ended
            _, status = os.waitpid(pid, 0)
        name = name or told
        if not os.WIFSIGNALED(status):
            os._exit(os.waitstatus_to_exitcode(status))
        ended_by = os.WTERMSIG(status)
        if not name or number == _LIVES:
            end(ended_by)
        number += 1
        rank, called = os.environ.get("RANK", "0"), signal.Signals(ended_by).name
        print(f"note: rank {rank}: was ended by {called}, and begins anew while the others wait", file=sys.stderr)


def _write(pipe: int, text: str) -> None:
    os.write(pipe, text.encode())
    os.close(pipe)


def _pass_on(pid: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return True
