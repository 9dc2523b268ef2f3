"""Supervisor process that forks its rank again after it was killed (``engine.recovery=rank``)."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from counterflow.signals import Signals, end

_MAX_RESTARTS = 100
"""A rank that is killed more often is killed by something that will not stop."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class SupervisedRank:
    """One process of a rank, as its supervisor forked it."""

    restart_count: int
    """Processes that were this rank before."""
    attempt: str | None
    """Key prefix of the run, which the first of them had the supervisor `remember`; None for the first one."""
    remember: Callable[[bytes], object]
    """Send the key prefix of the run to the supervisor; may be called once."""


def supervise(signals: Signals, rank: int) -> SupervisedRank:
    """Fork ``rank``; returns in every process of the rank. The supervisor itself ends as the last of them does.

    Must be called before this process computes anything: a forked process has only the thread that forked it.
    """
    restart_count, attempt = 0, ""
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            # A kill of the supervisor must end the rank too.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            return SupervisedRank(restart_count, attempt or None, partial(os.write, write_end))
        os.close(write_end)
        with signals.handled_by(partial(_pass_on, pid)), os.fdopen(read_end, "rb") as pipe:
            text = pipe.read().decode()  # until the rank has ended
            _, status = os.waitpid(pid, 0)
        attempt = attempt or text
        if not os.WIFSIGNALED(status):
            os._exit(os.waitstatus_to_exitcode(status))
        number = os.WTERMSIG(status)
        if not attempt or restart_count == _MAX_RESTARTS:
            end(number)
        restart_count += 1
        print(
            f"note: rank {rank}: was ended by {signal.Signals(number).name}, and begins anew while the others wait",
            file=sys.stderr,
        )


def _pass_on(pid: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return True
