"""Real jobs under torchrun's own agent, which restarts all ranks when it loses one, and the ways to kill them.

The agent and its workers are forked from a process that has imported everything: a run takes two seconds and not
fifteen. What the agent does is torchrun's: ``torchrun`` is a command line around it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.helpers.nodes import PORT, Node
from tests.helpers.processes import PROGRAM, context, redirect, run_script


def _work(overrides: list[str], log: str, cwd: str | None) -> None:
    """A worker: ``launch/train.py``."""
    redirect(log, log)
    if cwd is not None:
        os.chdir(cwd)
    run_script(PROGRAM, overrides)
    _marker(log, os.getpid()).touch()


def _marker(log: str | Path, pid: int) -> Path:
    """File that says that a worker has nothing left to do but to wait for the others."""
    return Path(f"{log}.ended-{pid}")


@dataclass(frozen=True)
class Place:
    """Place of an agent in a job of several nodes."""

    node: Node
    first: Node
    """The node whose agent hosts the meeting point."""
    nodes: int
    environment: Mapping[str, str]


def _agent(ranks: int, restarts: int, overrides: list[str], log: str, cwd: str | None, place: Place | None) -> None:
    os.setpgrp()
    os.environ["OMP_NUM_THREADS"] = "1"
    redirect(f"{log}.agent", f"{log}.agent")
    count, address, endpoint, run_id, is_host = 1, "127.0.0.1", "localhost:0", str(os.getpid()), {}
    if place is not None:
        place.node.enter()
        os.environ.update(place.environment)
        count, address, endpoint, run_id = place.nodes, place.node.address, f"{place.first.address}:{PORT}", "nodes"
        is_host = {"is_host": place.node == place.first}
    config = LaunchConfig(
        min_nodes=count, max_nodes=count, nproc_per_node=ranks, max_restarts=restarts, monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint=endpoint, rdzv_configs=is_host, local_addr=address, start_method="fork",
        run_id=run_id, logs_specs=DefaultLogsSpecs(),
    )  # fmt: skip
    try:
        elastic_launch(config, _work)(overrides, log, cwd)
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)


@dataclass
class Elastic:
    """A running job."""

    process: Any
    log: Path

    @classmethod
    def start(
        cls,
        ranks: int,
        log: Path,
        *overrides: str,
        restarts: int = 0,
        cwd: Path | None = None,
        place: Place | None = None,
    ) -> "Elastic":
        """Start ``launch/train.py`` on ``ranks`` processes.

        Args:
            ranks: Number of processes.
            log: File that takes what they print.
            overrides: Of the configuration.
            restarts: How often the agent starts all of them again.
            cwd: Folder in which they run.
            place: The node of these processes; None is this machine alone.
        """
        folder = str(cwd) if cwd is not None else None
        process = context.Process(target=_agent, args=(ranks, restarts, list(overrides), str(log), folder, place))
        process.start()
        return cls(process, log)

    def workers(self) -> list[int]:
        """Process ids of the ranks that live now."""
        return children(self.process.pid)

    def kill(self, pid: int) -> bool:
        """Kill a worker, or a child of one, with SIGKILL; False if it has ended.

        One that only waits for the others counts as ended. Torch's agent for functions, unlike torchrun's for
        programs, wakes waiting workers by a ``multiprocessing.Event``, whose ``set`` blocks for ever if one is killed.
        """
        try:
            os.kill(pid, signal.SIGSTOP)
            end = time.monotonic() + 30
            while _state(pid) not in "TZ":
                assert time.monotonic() < end, "a worker does not stop"
                time.sleep(0.001)
            ended = _marker(self.log, pid).exists()
            os.kill(pid, signal.SIGCONT if ended else signal.SIGKILL)
        except ProcessLookupError:
            return False
        return not ended

    def kill_all(self) -> None:
        """Kill the agent first, as it could restart a rank."""
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
        """Exit status of the agent. Fails, and kills all, if it still runs after ``seconds``."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill_all()
            raise AssertionError(f"still runs after {seconds:g} s:\n{self.output()}")
        assert not children(self.process.pid)
        status: int = self.process.exitcode
        return status

    def output(self) -> str:
        """Standard output and error of all ranks."""
        return self.log.read_text() if self.log.exists() else ""

    def summary(self) -> str:
        """The agent's account of the ranks that failed, with the exit status of each."""
        path = Path(f"{self.log}.agent")
        return path.read_text() if path.exists() else ""


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
    return _state(pid) != "Z"


def _state(pid: int) -> str:
    """State of a process as proc(5) has it; that of a zombie where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
