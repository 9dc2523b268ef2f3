"""Two ranks on this machine, for a start without a launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_RANKS = 2
_LOOPBACK = "127.0.0.1"


def run_here(program: Sequence[str], seconds: float) -> int:
    """Start ``program`` twice, with what a launcher would put into the environment; 0 if both return 0.

    What still runs after ``seconds`` is killed.
    """
    # Somebody else may take the port before rank 0 does: then the ranks do not meet, and the table says so.
    with socket.create_server((_LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": _RANKS, "LOCAL_WORLD_SIZE": _RANKS, "MASTER_ADDR": _LOOPBACK, "MASTER_PORT": port}
    ends = time.monotonic() + seconds
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(_RANKS):
            variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            environment = os.environ | {name: str(value) for name, value in variables.items()}
            processes.append(subprocess.Popen(program, env=environment))
        for process in processes:
            process.wait(max(0.0, ends - time.monotonic()))
        for rank, process in enumerate(processes):
            if process.returncode < 0:
                print(f"error: rank {rank} was ended by signal {-process.returncode}", file=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"error: a rank still ran after {seconds:g} s", file=sys.stderr)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return int(any(process.returncode for process in processes))
