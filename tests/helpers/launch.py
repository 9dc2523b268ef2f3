"""The programs of ``launch/``, as a user starts them, and what they print."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.distributed.launcher import api

from tests.helpers.elastic import Elastic
from tests.helpers.processes import PROGRAM, ROOT, Fresh, run_script

STAGES = str(ROOT / "launch" / "stages.py")
MAIN = str(ROOT / "src" / "counterflow" / "cli" / "main.py")

Done = subprocess.CompletedProcess[str]

__all__ = [
    "MAIN", "PROGRAM", "ROOT", "STAGES", "Done", "errors", "forked", "forked_ranks", "forked_torchrun", "running",
    "start", "torchrun",
]  # fmt: skip


def forked(
    program: str, *arguments: str, cwd: Path, seconds: float = 100, environment: Mapping[str, str] | None = None
) -> Done:
    """Run a program of ``launch/`` in a process that has imported torch already, which saves three seconds of a core.

    Args:
        program: Path of the program.
        arguments: Its command line.
        cwd: Folder in which it runs.
        seconds: The test fails if it takes longer.
        environment: Variables on top of those of the test.
    """
    with running(program, *arguments, cwd=cwd, environment=environment) as run:
        (ended,) = run.wait(seconds)
    return Done([program, *arguments], ended.status, ended.stdout, ended.stderr)


def running(program: str, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Fresh:
    """Start a program as `forked` does, as the only process of a `Fresh`."""
    return Fresh(1, _run, program, arguments, str(cwd), dict(environment or {}))


def _run(
    rank: int, ranks: int, store_path: str, program: str, arguments: Any, cwd: str, environment: dict[str, str]
) -> None:
    os.chdir(cwd)
    os.environ.update(environment)
    run_script(program, arguments)


def forked_ranks(*arguments: str, cwd: Path, seconds: float = 100) -> Done:
    """Run the ``counterflow`` command as `forked` does, with ranks that are forked too, not new interpreters."""
    with Fresh(1, _run_with_forked_ranks, arguments, str(cwd)) as run:
        (ended,) = run.wait(seconds)
    return Done([MAIN, *arguments], ended.status, ended.stdout, ended.stderr)


def _run_with_forked_ranks(rank: int, ranks: int, store_path: str, arguments: Any, cwd: str) -> None:
    def elastic_launch(config: api.LaunchConfig, entrypoint: str) -> Callable[..., Any]:
        config.start_method = "fork"
        return agent(config, _run_module)

    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)  # of forked ranks alone
    agent = api.elastic_launch
    api.elastic_launch = elastic_launch  # type: ignore[misc, assignment]
    os.chdir(cwd)
    run_script(MAIN, arguments)


def _run_module(option: str, module: str, *arguments: str) -> None:
    """A rank: ``python -m MODULE ARGUMENTS``."""
    assert option == "-m"
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    run_script(spec.origin, arguments)


def forked_torchrun(ranks: int, *overrides: str, cwd: Path, seconds: float = 100) -> Done:
    """Run ``launch/train.py`` under torchrun's agent, forked as well.

    Both outputs of the ranks are in both streams. The errors end with the agent's summary, as torchrun prints it.
    """
    job = Elastic.start(ranks, cwd.parent / f"{cwd.name}.log", *overrides, cwd=cwd)
    status = job.wait(seconds)
    return Done([PROGRAM, *overrides], status, job.output(), job.output() + job.summary())


def start(*command: str, cwd: Path, seconds: float = 100) -> Done:
    """Run a program in a new interpreter, as a user does; most tests want `forked`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun would print a banner about it
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds
    )


def torchrun(ranks: int, *overrides: str, cwd: Path, seconds: float = 100) -> Done:
    """Run ``launch/train.py`` under torchrun itself; most tests want `forked_torchrun`."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc_per_node={ranks}")
    return start(*launcher, PROGRAM, *overrides, cwd=cwd, seconds=seconds)


def errors(done: Done) -> list[str]:
    """Lines of its errors, which begin with ``error:``."""
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]
