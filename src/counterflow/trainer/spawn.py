"""Start of several ranks from a script or a notebook."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHILD = "from counterflow.trainer.spawn import run_child; run_child()"
_GRACE = 10.0
"""Seconds in which the other ranks may end by themselves after one has failed."""


class SpawnError(RuntimeError):
    """A rank that failed; the text is its error in one line, with the rank."""


def spawn(function: Callable[..., Any], /, *args: Any, ranks: int) -> Any:
    """Call ``function(*args)`` in ``ranks`` new processes of this machine, between which a Trainer divides its blocks.

    The function and its arguments travel by value if they are defined in a script or a notebook, so neither a guard of
    the main module nor a file is needed. The processes end with this one.

    Args:
        function: Called on every rank alike.
        args: Its arguments.
        ranks: Number of processes.

    Returns:
        What rank 0 returned, which must be picklable; None if it is not.

    Raises:
        ValueError: ``ranks`` is not positive, or this process is itself one of several ranks.
        SpawnError: A rank failed. All others have ended.
    """
    import cloudpickle
    from torch._C._distributed_c10d import TCPStore

    from counterflow.transport.rendezvous import listen

    if ranks < 1:
        raise ValueError(f"ranks={ranks}: must be at least 1")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"spawn: this process is already one of WORLD_SIZE={os.environ['WORLD_SIZE']} ranks")
    # Torch binds a store to all interfaces, but takes a socket that listens on one.
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    with tempfile.TemporaryDirectory(prefix="counterflow-spawn-") as folder:
        task = Path(folder) / "task"
        task.write_bytes(cloudpickle.dumps((function, args, sys.path)))
        processes = []
        try:
            for rank in range(ranks):
                environment = {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(store.port),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                    "TORCH_CPP_LOG_LEVEL": "ERROR",  # the end of the store would be told in frames of C++
                }
                command = [sys.executable, "-c", _CHILD, str(task), str(Path(folder) / f"result-{rank}")]
                processes.append(subprocess.Popen(command, env=os.environ | environment))
            return _wait(processes, Path(folder))
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path) -> Any:
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    errors = [
        f"rank {rank}: {_error(process, folder / f'result-{rank}')}"
        for rank, process in enumerate(processes)
        if process.returncode
    ]
    if errors:
        # A rank that lost another one says so too: the reason is the error of the rank that ended first.
        raise SpawnError(min(errors, key=lambda text: "lost rank" in text or "lost a rank" in text))
    return pickle.loads((folder / "result-0").read_bytes())


def _error(process: subprocess.Popen[bytes], path: Path) -> str:
    return str(pickle.loads(path.read_bytes())) if path.exists() else f"ended with status {process.returncode}"


def run_child() -> None:
    """Run the task of one rank, in a process that `spawn` started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    task, result = map(Path, sys.argv[1:])
    sys.argv[1:] = []
    function, args, sys.path[:] = pickle.loads(task.read_bytes())
    status, outcome = 0, None
    try:
        value = function(*args)
        outcome = value if os.environ["RANK"] == "0" else None
    except BaseException as error:
        traceback.print_exc()
        status, outcome = 1, f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        content = pickle.dumps(outcome)
    except Exception:  # a value that is bound to its process
        content = pickle.dumps(None)
    result.write_bytes(content)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of a failed run may be inside an operation that never completes
