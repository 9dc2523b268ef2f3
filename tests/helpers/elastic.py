"""Real jobs under torchrun's own agent, which restarts all ranks when it loses one, and the ways to kill them.

The agent and its workers are forked from a process that has imported everything: a run takes two seconds and not
fifteen. What the agent does is torchrun's: ``torchrun`` is a command line around it.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.helpers.processes import CONF, context


def _work(overrides: list[str], log: str) -> None:
    """A worker: what ``launch/train.py`` does."""
    from counterflow.cli.launch import main

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["train.py", *overrides]
    main(CONF)


def _agent(ranks: int, restarts: int, overrides: list[str], log: str) -> None:
    os.setpgrp()
    os.environ["OMP_NUM_THREADS"] = "1"
    handle = os.open(log + ".agent", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, max_restarts=restarts, monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="127.0.0.1", start_method="fork",
        run_id=str(os.getpid()), logs_specs=DefaultLogsSpecs(),
    )  # fmt: skip
    try:
        elastic_launch(config, _work)(overrides, log)
    except BaseException as error:
        print(error)
        os._exit(1)
    os._exit(0)


@dataclass
class Elastic:
    """A job that runs."""

    process: Any
    log: Path

    @classmethod
    def start(cls, ranks: int, log: Path, *overrides: str, restarts: int = 0) -> "Elastic":
        process = context.Process(target=_agent, args=(ranks, restarts, list(overrides), str(log)))
        process.start()
        return cls(process, log)

    def workers(self) -> list[int]:
        """Process ids of the ranks that live now."""
        return children(self.process.pid)

    def kill_all(self) -> None:
        """The agent first, which could restart somebody."""
        workers = self.workers()
        for pid in (self.process.pid, *workers, *self.workers()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join(30)
        end = time.monotonic() + 30
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < end, "a worker outlives SIGKILL"
            time.sleep(0.005)

    def wait(self, seconds: float) -> int:
        """The exit status; whoever is not through then is killed, and the log is shown."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill_all()
            raise AssertionError(f"not through within {seconds:g} s:\n{self.output()}")
        assert not children(self.process.pid)
        status: int = self.process.exitcode
        return status

    def output(self) -> str:
        """What the ranks printed."""
        return self.log.read_text() if self.log.exists() else ""


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
