"""Network emulation: slow links between processes of one machine, for everything that uses TCP between them.

Every rank moves into a network namespace of its own, whose only way out is a tunnel device. A router in user space
(`counterflow.bench.netem_router`) reads the packets of all ranks from their tunnels, and forwards each one when a link
of the given bandwidth and latency would have delivered it. Everything above is real: the kernel's TCP, gloo, the store.

A packet has up to 65,000 bytes, which keeps their number small. TCP windows are open from the start, so that the link
is measured, and not TCP's slow start. With ``internet``, packets have up to 1,500 bytes and TCP is as the kernel has
it. Linux only, as root or where users may create namespaces.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

MAX_RANKS = 254
INTERFACE = "link"
"""Network interface of every rank."""

_TUN = "/dev/net/tun"
_MTU, _INTERNET_MTU = 65000, 1500
_WINDOW = 32 << 20
"""Bytes in flight on one connection: many times bandwidth * latency of a slow link."""

_JOIN_SECONDS = 60.0
"""Time limit for all ranks to join."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_UP, _IFF_TUN, _IFF_NO_PI = 0x1, 0x1, 0x1000
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 0x1, 0x4, 0x400
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_IFLA_MTU, _IFLA_TXQLEN, _IFA_LOCAL = 4, 13, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 7, 8
_RTAX_LOCK, _RTAX_INITCWND, _RTAX_RTO_MIN = 1, 11, 13
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 253, 1

_SETTINGS = {
    "tcp_congestion_control": "reno",  # without losses its window only grows; bbr and cubic react to the delay
    "tcp_slow_start_after_idle": "0",
    "tcp_early_retrans": "0",
    "tcp_no_metrics_save": "1",
}
_WINDOWS = {
    "tcp_rmem": f"4096 {2 * _WINDOW} {2 * _WINDOW}",
    "tcp_wmem": f"4096 {2 * _WINDOW} {2 * _WINDOW}",
}


@dataclass(frozen=True)
class LinkSpeed:
    """Bandwidth and latency of every link between two ranks, in each direction."""

    bandwidth: float
    """Bytes/s, IP and TCP headers included: less than 0.1 % of large messages."""
    latency: float
    """Seconds, one way."""
    internet: bool = False
    """Small packets and the kernel's own TCP, whose windows grow and shrink."""
    loss: float = 0.0
    """Share of packets that are lost, with ``internet``."""

    def __post_init__(self) -> None:
        if not 0 <= self.loss <= 0.5 or (self.loss and not self.internet):
            raise ValueError(f"loss={self.loss}: must be between 0 and 0.5, and 0 without internet")
        if 2 * self.bandwidth * self.latency > _WINDOW / 2:
            raise ValueError(
                f"bandwidth={self.bandwidth}: at a latency of {self.latency} s at most "
                f"{_WINDOW / 4 / self.latency:.3g} bytes/s, which windows of {_WINDOW >> 20} MB still fill"
            )


@dataclass(frozen=True)
class JoinHandle:
    """Handle with which a rank joins an emulated network. Can be pickled."""

    path: str
    """Socket of the router."""
    ranks: int
    router_pid: int
    internet: bool = False


@contextmanager
def emulated_network(ranks: int, speed: LinkSpeed) -> Iterator[JoinHandle]:
    """Run the router for links of ``speed`` between ``ranks`` processes.

    Raises:
        ValueError: The number of ranks is out of range.
    """
    if not 1 <= ranks <= MAX_RANKS:
        raise ValueError(f"ranks={ranks}: 1..{MAX_RANKS}")
    with (
        TemporaryDirectory(prefix="counterflow-netem-", ignore_cleanup_errors=True) as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(f"{folder}/router")
        listener.listen(ranks)
        with subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).with_name("netem_router.py")),
                *map(str, (listener.fileno(), ranks, speed.bandwidth, speed.latency, speed.loss)),
            ],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends; that ends the router
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C reaches this process alone, which then leaves the context
        ) as router:
            listener.close()
            try:
                yield JoinHandle(f"{folder}/router", ranks, router.pid, speed.internet)
            finally:
                router.kill()


def ip_address(rank: int) -> str:
    """IP address of a rank in its network."""
    return f"10.77.0.{rank + 1}"


def join(handle: JoinHandle, rank: int) -> None:
    """Move this process into the network for the rest of its life, and wait until all ranks have joined.

    Call it in the main thread before anything listens or connects: existing threads and sockets stay outside. A new
    process may later join as the same rank.

    Raises:
        ValueError: There is no such rank, or this machine does not allow namespaces or tunnels.
        RuntimeError: The router has ended, or not all ranks have joined within 60 s.
    """
    if not 0 <= rank < handle.ranks:
        raise ValueError(f"rank={rank}: 0..{handle.ranks - 1}")
    tunnel = _move(rank, handle.internet)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_JOIN_SECONDS)
        connection.connect(handle.path)
        socket.send_fds(connection, [bytes([rank])], [tunnel])
        if not connection.recv(1):
            raise ConnectionError("the router has ended")
    except TimeoutError as error:
        raise RuntimeError(
            f"network: rank {rank}: not all {handle.ranks} ranks joined within {_JOIN_SECONDS} s"
        ) from error
    except OSError as error:
        raise RuntimeError(f"network: rank {rank}: {error}") from error
    finally:
        os.close(tunnel)
    connection.detach()  # stays open: the router sees it close when this process ends


def unavailable_reason() -> str | None:
    """The reason why this machine cannot emulate links; None if it can. Tries it in a subprocess."""
    done = subprocess.run(
        [sys.executable, "-I", __file__], capture_output=True, text=True, check=False, timeout=_JOIN_SECONDS
    )
    return None if done.returncode == 0 else (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]


def _move(rank: int, internet: bool) -> int:
    """Move this thread into a new namespace; returns the descriptor of the tunnel that leads out."""
    if not sys.platform.startswith("linux"):
        raise ValueError("slow links: only Linux has the namespaces and tunnels")
    try:
        _unshare()
        for name, value in (_WINDOWS if internet else _WINDOWS | _SETTINGS).items():
            Path("/proc/sys/net/ipv4", name).write_text(value)
        tunnel = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("=16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
        _bring_up(socket.inet_aton(ip_address(rank)), internet)
    except OSError as error:
        raise ValueError(f"slow links: this machine does not allow them: {error}") from error
    return tunnel


def _unshare() -> None:
    """Create the network namespace, inside a user namespace if this user may not create one otherwise."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if ctypes.get_errno() != errno.EPERM or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _bring_up(own: bytes, internet: bool) -> None:
    """Enable loopback and the tunnel, with address ``own`` and a route to the other ranks."""
    index = socket.if_nametoindex(INTERFACE)
    metrics = (
        _attribute(_RTAX_LOCK, 1 << _RTAX_RTO_MIN)
        + _attribute(_RTAX_INITCWND, _WINDOW // _MTU)
        + _attribute(_RTAX_RTO_MIN, 5000)  # ms until a packet counts as lost: none ever is, but many wait in a queue
    )
    up = struct.Struct("=BxHiII")
    requests = [
        (_RTM_NEWLINK, up.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex("lo"), _IFF_UP, _IFF_UP)),
        (
            _RTM_NEWLINK,
            up.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
            + _attribute(_IFLA_MTU, _INTERNET_MTU if internet else _MTU)
            + _attribute(_IFLA_TXQLEN, 10_000),  # packets that wait while the router is busy
        ),
        (_RTM_NEWADDR, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index) + _attribute(_IFA_LOCAL, own)),
        (
            _RTM_NEWROUTE,
            struct.pack(
                "=BBBBBBBBI",
                *(socket.AF_INET, 24, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST, 0),
            )
            + _attribute(_RTA_DST, own[:3] + b"\0")
            + _attribute(_RTA_OIF, index)
            + _attribute(_RTA_PREFSRC, own)
            + (b"" if internet else _attribute(_RTA_METRICS, metrics)),
        ),
    ]
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        for kind, request in requests:
            kernel.send(struct.pack("=IHHII", 16 + len(request), kind, flags, 1, 0) + request)
            (status,) = struct.unpack_from("=i", kernel.recv(65536), 16)  # of the acknowledgement
            if status:
                raise OSError(-status, os.strerror(-status), f"netlink request {kind}")


def _attribute(kind: int, value: bytes | int) -> bytes:
    data = struct.pack("=I", value) if isinstance(value, int) else value
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


if __name__ == "__main__":
    try:
        os.close(_move(0, internet=False))
    except ValueError as error:
        sys.exit(str(error))
