"""Command line of ``launch/doctor.py``: diagnostics on the ranks of a launcher, or on two ranks that it starts."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from counterflow.cli.console import EXIT_FAILURE, EXIT_SIGNAL, ArgumentParser
from counterflow.doctor.check import Check, Status, summary_line, table

_LOOPBACK = "127.0.0.1"
_EXAMPLES = """\
examples:
  torchrun --standalone --nproc_per_node=4 launch/doctor.py --run-dir /shared/runs
  counterflow doctor --endpoint 10.0.0.1:29400 --nodes 2"""

_MEASURING = 15.0
"""Seconds from the first check of a process after which it starts no measurement."""
_LONGEST_WAIT = 60.0
"""Seconds."""
_OVERHEAD = 30.0
"""Seconds of everything but measurements and waits, for ranks that are started here."""


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= _LONGEST_WAIT:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: seconds, more than 0 and at most {_LONGEST_WAIT:g}")


def _nodes(text: str) -> int:
    if text.isdecimal() and text.isascii() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1")


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host and port.isdecimal() and port.isascii() and 0 < int(port) < 2**16:
        return host, int(port)
    raise argparse.ArgumentTypeError(f"{text}: HOST:PORT, with a port below 65536")


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the diagnostics, and exit with 0 if no check failed, otherwise with 1."""
    start = time.monotonic()
    parser = ArgumentParser(
        prog="counterflow doctor", description="Checks of a machine before a run.", epilog=_EXAMPLES
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs go (%(default)s)")
    parser.add_argument("--timeout", type=_seconds, default=5.0, help="seconds of any wait for a rank (%(default)g)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the messages")
    parser.add_argument("--links", type=Path, metavar="FILE", help="write the measured links, for machines.links=FILE")
    across = parser.add_argument_group("before torchrun, on every node")
    across.add_argument("--endpoint", type=_endpoint, metavar="HOST:PORT", help="that of torchrun's --rdzv-endpoint")
    across.add_argument("--nodes", type=_nodes, default=2, help="number of nodes (%(default)s)")
    across.add_argument("--is-host", choices=("0", "1"), help="that of torchrun's --rdzv-conf, if it is given")
    across.add_argument("--local-addr", metavar="ADDRESS", help="that of torchrun's --local-addr")
    options = parser.parse_args(arguments)
    if options.endpoint is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        from counterflow.doctor.endpoint import check_endpoint

        is_host = None if options.is_host is None else options.is_host == "1"
        _print_and_exit(check_endpoint(options.endpoint, options.nodes, options.local_addr, is_host), start)
    if "WORLD_SIZE" not in os.environ:
        sys.exit(_run_two_ranks(arguments, _MEASURING + 4 * options.timeout + _OVERHEAD))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process in any wait
    # Imported late: the process that only starts ranks does not need torch, which takes seconds to load.
    from counterflow.doctor.diagnostics import check_rank

    try:
        deadline = time.monotonic() + _MEASURING
        checks = check_rank(options.run_dir, options.timeout, options.quick, deadline, options.links)
    except ValueError as error:
        parser.error(str(error))
    _print_and_exit(checks, start)


def _print_and_exit(checks: Sequence[Check], start: float) -> NoReturn:
    if checks:
        print(table(checks))
        print(f"{summary_line(checks)}, in {time.monotonic() - start:.1f} s", flush=True)
    # Threads may still wait for lost ranks, and only this ends them.
    os._exit(EXIT_FAILURE if any(check.status is Status.FAIL for check in checks) else 0)


def _run_two_ranks(arguments: Sequence[str], seconds: float) -> int:
    """Run this program as two ranks, with the environment of a launcher; return 0 if both do.

    Kills the ranks that still run after ``seconds``.
    """
    # -P: a user's files in the working directory do not hide modules.
    command = [sys.executable, "-P", "-m", "counterflow.doctor.cli", *arguments]
    # Another program may take the port before rank 0 does: then the ranks do not meet, and the table shows it.
    with socket.create_server((_LOOPBACK, 0)) as listener:
        meeting = {"MASTER_ADDR": _LOOPBACK, "MASTER_PORT": str(listener.getsockname()[1])}
    deadline = time.monotonic() + seconds
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in "01":
            variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=os.environ | meeting | variables))
        for i, process in enumerate(processes):
            if process.wait(max(0.0, deadline - time.monotonic())) < 0:
                print(f"error: rank {i} was ended by signal {-process.returncode}", file=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"error: a rank still ran after {seconds:g} s", file=sys.stderr)
    except KeyboardInterrupt:
        return EXIT_SIGNAL + signal.SIGINT
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return int(any(process.returncode for process in processes))


if __name__ == "__main__":
    main(sys.argv[1:])
