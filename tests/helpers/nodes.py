"""Nodes of a job as namespaces of this machine: each has a network interface, a host name and a clock of its own,
and may have folders of its own.

A switch joins them: a bridge in one more namespace. Every namespace lives as long as one process in it, which ends when
its standard input closes. So nothing is left behind, even if the test itself is killed, and this machine's own
network is not touched.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INTERFACE = "eth0"
"""Of every node."""
PORT = 29400
"""At which the agents of a job meet, on the first node."""

_KINDS = {"net": 0x40000000, "uts": 0x4000000, "time": 0x80, "mnt": 0x20000}
"""Kinds of namespaces, and their flags."""


@dataclass(frozen=True)
class Node:
    """A node that has a process to keep its namespaces."""

    number: int
    pid: int
    switch: int
    """Process of the switch."""

    @property
    def address(self) -> str:
        return f"10.88.0.{self.number + 1}"

    @property
    def name(self) -> str:
        return f"node{self.number}"

    def enter(self) -> None:
        """Move this process, which must have one thread, and its children into the node."""
        libc = ctypes.CDLL(None, use_errno=True)
        for kind, flag in _KINDS.items():
            descriptor = os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY)
            status = libc.setns(descriptor, flag)
            os.close(descriptor)
            assert status == 0, f"setns {kind}: {os.strerror(ctypes.get_errno())}"
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE

    def mount(self, source: Path, target: Path) -> None:
        """Have the node see ``source`` where the others see the folder ``target``."""
        source.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        _run("nsenter", f"--target={self.pid}", "--mount", "mount", "--bind", str(source), str(target))

    def unplug(self) -> None:
        """Take the node off the switch. Its interface stays up, so nothing says so: packets are lost."""
        _ip(self.switch, "link", "set", f"port{self.number}", "nomaster")

    def plug(self) -> None:
        _ip(self.switch, "link", "set", f"port{self.number}", "master", "switch")

    def set_interface(self, state: str) -> None:
        """Set the node's own interface ``up`` or ``down``."""
        _ip(self.pid, "link", "set", INTERFACE, state)


@contextmanager
def nodes(count: int, clocks: Sequence[int] = ()) -> Iterator[list[Node]]:
    """Nodes that reach each other.

    Args:
        count: Their number.
        clocks: Seconds by which the monotonic clock of each is ahead of this machine's.
    """
    with ExitStack() as stack:
        switch = _namespace(stack, "switch", 0)
        _ip(switch, "link", "add", "switch", "type", "bridge")
        _ip(switch, "link", "set", "switch", "up")
        found = []
        for number in range(count):
            ahead = clocks[number] if clocks else 0
            node = Node(number, _namespace(stack, f"node{number}", ahead), switch)
            port = f"port{number}"
            peer = ("peer", "name", INTERFACE, "netns", str(node.pid))
            _ip(switch, "link", "add", port, "type", "veth", *peer)
            _ip(switch, "link", "set", port, "master", "switch", "up")
            _ip(node.pid, "link", "set", "lo", "up")
            _ip(node.pid, "address", "add", f"{node.address}/24", "dev", INTERFACE)
            _ip(node.pid, "link", "set", INTERFACE, "up")
            found.append(node)
        yield found


@cache
def unavailable_reason() -> str | None:
    """The reason why this machine cannot have nodes; None if it can."""
    if not sys.platform.startswith("linux"):
        return "only Linux has namespaces"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    if os.geteuid() != 0:
        return "only root may enter the namespaces"
    try:
        with nodes(1):
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return getattr(error, "stderr", None) or str(error)


def _namespace(stack: ExitStack, name: str, ahead: int) -> int:
    """Start a process in namespaces of its own that ends with this one; its process id."""
    flags = ["--net", "--uts", "--mount", "--time", f"--monotonic={ahead}", f"--boottime={ahead}"]
    # The process after the fork is the first one in the namespace of time.
    process = subprocess.Popen(
        ["unshare", *flags, "--fork", "--kill-child", "sh", "-c", f"hostname {name} && echo $$ && exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(process.wait, 10)
    stack.callback(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(process.stdin.close)
    line = process.stdout.readline()
    if not line:
        raise OSError(f"unshare ended with status {process.wait(10)}")
    return int(line)


def _ip(pid: int, *arguments: str) -> None:
    """Run ``ip`` in the network of process ``pid``."""
    _run("nsenter", f"--target={pid}", "--net", "ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
