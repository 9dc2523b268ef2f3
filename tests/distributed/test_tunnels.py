"""The tunnels and the firewall of docs/trust.md between two nodes, which are network namespaces.

Needs root, iproute2, nftables and, for each tunnel, its programs; skips what is not installed. Processes of a test end
with it, and so do its namespaces.
"""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.helpers.launch import PROGRAM, ROOT, forked

OPTIONS = (
    "blocks=2", "model.width=16", "train.steps=50", "engine.threads=1", "engine.timeout=60", "run.display=false",
)  # fmt: skip
PORT = 29400
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
LISTEN = (
    f"import socket, time; s = socket.create_server(('0.0.0.0', {PORT})); print('here', flush=True); time.sleep(60)"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def needs(*programs: str) -> None:
    """Skip the test where a program is missing, or where this user cannot make namespaces."""
    missing = [program for program in ("ip", "nft", *programs) if shutil.which(program) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs root and {', '.join(missing)}")


class Nodes:
    """Two network namespaces with a wire between them, 192.0.2.1 and 192.0.2.2."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._names = [f"counterflow-{os.getpid()}-{node}" for node in (0, 1)]
        self.folder = folder
        for name in self._names:
            _call("ip", "netns", "add", name)
            stack.callback(_call, "ip", "netns", "del", name)
        ends = [f"cf{os.getpid()}-{node}" for node in (0, 1)]
        _call("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for node, end in enumerate(ends):
            _call("ip", "link", "set", end, "netns", self._names[node])
            self.on(node, "ip", "addr", "add", f"192.0.2.{node + 1}/24", "dev", end)
            for link in (end, "lo"):
                self.on(node, "ip", "link", "set", link, "up")

    def _command(self, node: int, command: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self._names[node], *command]

    def on(self, node: int, *command: str, text: str | None = None) -> str:
        """Output of a command on a node."""
        return _call(*self._command(node, command), text=text)

    def start(self, node: int, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """A process on a node, which ends with the test."""
        process = subprocess.Popen(
            self._command(node, command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)
        return process

    def until(self, true: Callable[[], object]) -> None:
        """Wait for 20 s until a command on a node succeeds."""
        end = time.monotonic() + 20
        while True:
            with suppress(subprocess.CalledProcessError):
                true()
                return
            assert time.monotonic() < end, "not within 20 s"
            time.sleep(0.1)


def _call(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    needs()
    with ExitStack() as stack:
        yield Nodes(stack, tmp_path)


def wireguard(nodes: Nodes) -> list[str]:
    """The tunnel's interface on each node."""
    needs("wg", "wireguard-go")
    names, keys, public = ["wg0", "wg1"], [], []
    for node, name in enumerate(names):  # wireguard-go has a socket for each name, which both nodes see
        nodes.start(node, "wireguard-go", "-f", name)
        keys.append(nodes.folder / f"key{node}")
        keys[-1].write_text(_call("wg", "genkey"))
        public.append(_call("wg", "pubkey", text=keys[-1].read_text()).strip())
    for node, name in enumerate(names):
        other = 1 - node
        command = (
            f"wg set {name} private-key {keys[node]} listen-port 51820 peer {public[other]} "
            f"allowed-ips 10.9.0.{other + 1}/32 endpoint 192.0.2.{other + 1}:51820"
        )
        nodes.until(lambda node=node, command=command: nodes.on(node, *command.split()))  # type: ignore[misc]
        nodes.on(node, "ip", "addr", "add", f"10.9.0.{node + 1}/24", "dev", name)
        nodes.on(node, "ip", "link", "set", name, "mtu", "1420", "up")
    return names


def ssh(nodes: Nodes) -> list[str]:
    """The tunnel's interface on each node."""
    needs("sshd", "ssh", "ssh-keygen")
    if "sshd" not in {entry.pw_name for entry in pwd.getpwall()} or not Path("/run/sshd").is_dir():
        pytest.skip("needs a set up openssh-server")
    folder = nodes.folder
    for name in ("host", "user"):
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    settings = (
        f"Port 2222\nListenAddress 192.0.2.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PermitRootLogin prohibit-password\nPermitTunnel point-to-point\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    (folder / "sshd_config").write_text(settings)
    nodes.start(0, str(shutil.which("sshd")), "-D", "-e", "-f", f"{folder}/sshd_config")
    nodes.until(lambda: nodes.on(1, sys.executable, "-c", KNOCK, "192.0.2.1", "2222"))
    nodes.start(
        1, "ssh", "-N", "-p", "2222", "-i", f"{folder}/user", "-o", "StrictHostKeyChecking=no",
        "-o", f"UserKnownHostsFile={folder}/known", "-o", "ExitOnForwardFailure=yes", "-w", "0:0", "root@192.0.2.1",
    )  # fmt: skip
    for node in (0, 1):
        addresses = f"ip addr add 10.9.0.{node + 1} peer 10.9.0.{2 - node} dev tun0".split()
        nodes.until(lambda node=node, addresses=addresses: nodes.on(node, *addresses))  # type: ignore[misc]
        nodes.on(node, "ip", "link", "set", "tun0", "up")
    return ["tun0", "tun0"]


def firewall(interface: str) -> str:
    """The rules of the documentation."""
    (rules,) = re.findall(
        r"nft -f - <<'END'\n(.*?)^END$", (ROOT / "docs/trust.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert '"wg0"' in rules
    return str(rules).replace('"wg0"', f'"{interface}"')


def reachable(nodes: Nodes, address: str) -> bool:
    """True if node 1 reaches `PORT` of node 0 at ``address``."""
    try:
        nodes.on(1, sys.executable, "-c", KNOCK, address, str(PORT))
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.mark.parametrize("tunnel", [wireguard, ssh])
def test_two_nodes_behind_a_firewall_meet_in_a_tunnel(tunnel: Callable[[Nodes], list[str]], nodes: Nodes) -> None:
    names = tunnel(nodes)
    server = nodes.start(0, sys.executable, "-c", LISTEN)
    assert server.stdout is not None
    assert server.stdout.readline() == "here\n"
    assert reachable(nodes, "192.0.2.1"), "no firewall yet"
    for node, name in enumerate(names):
        nodes.on(node, "nft", "-f", "-", text=firewall(name))
    assert not reachable(nodes, "192.0.2.1")
    nodes.until(lambda: nodes.on(1, sys.executable, "-c", KNOCK, "10.9.0.1", str(PORT)))
    server.kill()
    server.wait()
    run, secret = nodes.folder / "run", nodes.folder / "secret"
    secret.write_text("a secret of more than 16 bytes")
    secret.chmod(0o600)
    agents = [
        nodes.start(
            node, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            f"--local-addr=10.9.0.{node + 1}", "--rdzv-backend=c10d", f"--rdzv-endpoint=10.9.0.1:{PORT}",
            "--rdzv-id=mine", f"--rdzv-conf=is_host={1 - node}", PROGRAM, *OPTIONS, f"run.dir={run}",
            "engine.recovery=rank", f"engine.secret_file={secret}",
            GLOO_SOCKET_IFNAME=name, OMP_NUM_THREADS="1",
        )
        for node, name in enumerate(names)
    ]  # fmt: skip
    outputs = [agent.communicate(timeout=150)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    alone = nodes.folder / "alone"
    assert forked(PROGRAM, *OPTIONS, f"run.dir={alone}", cwd=nodes.folder).returncode == 0
    assert len({json.loads((folder / "summary.json").read_text())["fingerprint"] for folder in (run, alone)}) == 1


def test_the_loopback_interface_stays_open(nodes: Nodes) -> None:
    nodes.on(0, "nft", "-f", "-", text=firewall("wg0"))
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 2)"
    nodes.on(0, sys.executable, "-c", code)
