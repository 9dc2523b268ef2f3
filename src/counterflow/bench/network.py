"""Slow links between processes of one machine, for whatever speaks TCP between them.

Every rank puts itself into a network namespace of its own, whose only way out is a tunnel device. A router in user
space takes the packets of all ranks from their tunnels, and passes each on when a link of the given bandwidth and
latency would have. So everything above is the real thing: the kernel's TCP, gloo, the store. A packet is up to 65,000
bytes, so that there are few of them; windows are open from the beginning, for what is measured is the link, and not
how TCP gets to know it. Linux only, as root or where users may make namespaces.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

MAX_RANKS = 254
INTERFACE = "link"

_HERE = Path(__file__)
_RELAY = _HERE.with_name("relay.py")

_TUN = "/dev/net/tun"
_MTU = 65000
_QUEUE = 10_000
"""Packets that a tunnel holds while the router is busy."""
_WINDOW = 32 << 20
"""Bytes of a connection that may be under way: many times bandwidth * latency of a slow link."""
_MIN_TIMEOUT = 5000
"""ms until TCP takes a packet for lost: none ever is, but many wait in a queue."""

_GREETING = struct.Struct("=I")
"""As the router reads it: the rank. It comes with the descriptor of its tunnel."""

_ENTER_SECONDS = 60.0
"""Within which all ranks have to be there."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 0x1, 0x4, 0x400
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_TXQLEN = 4, 13
_IFA_LOCAL = 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 7, 8
_RTAX_LOCK, _RTAX_INITCWND, _RTAX_RTO_MIN = 1, 11, 13
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 253, 1

_SETTINGS = {
    "tcp_congestion_control": "reno",  # without losses it only ever opens; bbr and cubic listen to the delay
    "tcp_slow_start_after_idle": "0",
    "tcp_early_retrans": "0",
    "tcp_no_metrics_save": "1",
    "tcp_rmem": f"4096 {2 * _WINDOW} {2 * _WINDOW}",
    "tcp_wmem": f"4096 {2 * _WINDOW} {2 * _WINDOW}",
}


@dataclass(frozen=True)
class LinkSpeed:
    """Of every link from one rank to another, each way."""

    bandwidth: float
    """Bytes/s, headers of IP and TCP included: less than 0.1 % in large messages."""
    latency: float
    """One way, s."""

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth={self.bandwidth}: more than 0 bytes/s")
        if not self.latency >= 0:
            raise ValueError(f"latency={self.latency}: 0 s or more")
        if 2 * self.bandwidth * self.latency > _WINDOW / 2:
            raise ValueError(
                f"bandwidth={self.bandwidth}: at a latency of {self.latency} s at most "
                f"{_WINDOW / 4 / self.latency:.3g} bytes/s, which windows of {_WINDOW >> 20} MB still fill"
            )


@dataclass(frozen=True)
class Door:
    """Where the ranks of a network enter it. May be pickled."""

    path: str
    ranks: int


@dataclass(frozen=True)
class Place:
    """Of one rank in a network, until its process ends."""

    interface: str
    address: str


class Network:
    """Links of ``speed`` between ``ranks`` processes: a context, whose router ends when it is left.

    Raises ValueError: the number of ranks is out of range.
    """

    def __init__(self, ranks: int, speed: LinkSpeed) -> None:
        if not 1 <= ranks <= MAX_RANKS:
            raise ValueError(f"ranks={ranks}: 1..{MAX_RANKS}")
        self._ranks, self._speed = ranks, speed

    def __enter__(self) -> Self:
        self._folder = mkdtemp(prefix="counterflow-network-")
        self.door = Door(f"{self._folder}/door", self._ranks)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.door.path)
            listener.listen(self._ranks)
            what = (listener.fileno(), self._ranks, self._speed.bandwidth, self._speed.latency)
            self._router = subprocess.Popen(
                [sys.executable, "-I", str(_RELAY), *map(str, what)],
                stdin=subprocess.PIPE,  # ends with this process, however that ends
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then leaves the context
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._router:
            self._router.kill()
        rmtree(self._folder, ignore_errors=True)


def address(rank: int) -> str:
    """Of a rank in its network."""
    return f"10.77.0.{rank + 1}"


def enter(door: Door, rank: int) -> Place:
    """Moves this process into the network and returns when all ranks are there.

    To be called in the main thread before anything listens or connects: threads that exist already, and sockets, stay
    where they are. A process that has entered stays there for its life, and a rank may be taken over by a new one.

    Raises ValueError: there is no such rank, or this machine does not allow namespaces or tunnels. RuntimeError: the
    router has ended, or not all ranks came within 60 s.
    """
    if not 0 <= rank < door.ranks:
        raise ValueError(f"rank={rank}: 0..{door.ranks - 1}")
    tunnel = _move(rank)
    try:
        call = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        call.settimeout(_ENTER_SECONDS)
        call.connect(door.path)
        socket.send_fds(call, [_GREETING.pack(rank)], [tunnel])
        if not call.recv(1):
            raise ConnectionError("it has ended")
    except TimeoutError as error:
        raise RuntimeError(f"network: rank {rank}: not all {door.ranks} ranks came in {_ENTER_SECONDS} s") from error
    except OSError as error:
        raise RuntimeError(f"network: rank {rank}: {error}") from error
    finally:
        os.close(tunnel)
    call.detach()  # stays open: its end tells the router that this process has ended
    return Place(INTERFACE, address(rank))


def available() -> str | None:
    """Why there are no slow links on this machine; None if there are. Tries it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-I", str(_HERE)], capture_output=True, text=True, check=False, timeout=_ENTER_SECONDS
    )
    return None if done.returncode == 0 else (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]


def _move(rank: int) -> int:
    """Moves this thread into a namespace of its own; the descriptor of the tunnel that leads out."""
    if not sys.platform.startswith("linux"):
        raise ValueError("slow links: namespaces and tunnels of Linux alone")
    try:
        _unshare()
        for name, value in _SETTINGS.items():
            Path("/proc/sys/net/ipv4", name).write_text(value)
        tunnel = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        request = struct.pack("=16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(tunnel, _TUNSETIFF, request)
        _bring_up(socket.inet_aton(address(rank)))
    except OSError as error:
        raise ValueError(f"slow links: this machine does not allow them: {error}") from error
    return tunnel


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if ctypes.get_errno() != errno.EPERM:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare(CLONE_NEWNET)")
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare(CLONE_NEWUSER)")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _bring_up(own: bytes) -> None:
    """Loopback and the tunnel, with the way to the other ranks."""
    index = socket.if_nametoindex(INTERFACE)
    window = _WINDOW // _MTU
    metrics = (
        _number(_RTAX_LOCK, 1 << _RTAX_RTO_MIN) + _number(_RTAX_INITCWND, window) + _number(_RTAX_RTO_MIN, _MIN_TIMEOUT)
    )
    up = struct.Struct("=BxHiII")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        _ask(kernel, _RTM_NEWLINK, up.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex("lo"), _IFF_UP, _IFF_UP))
        _ask(
            kernel,
            _RTM_NEWLINK,
            up.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
            + _number(_IFLA_MTU, _MTU)
            + _number(_IFLA_TXQLEN, _QUEUE),
        )
        _ask(kernel, _RTM_NEWADDR, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index) + _attribute(_IFA_LOCAL, own))
        _ask(
            kernel,
            _RTM_NEWROUTE,
            struct.pack(
                "=BBBBBBBBI",
                *(socket.AF_INET, 24, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_LINK, _RTN_UNICAST, 0),
            )
            + _attribute(_RTA_DST, own[:3] + b"\0")
            + _number(_RTA_OIF, index)
            + _attribute(_RTA_PREFSRC, own)
            + _attribute(_RTA_METRICS, metrics),
        )


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _ask(kernel: socket.socket, kind: int, body: bytes) -> None:
    """One request to the kernel over netlink."""
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE
    kernel.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    (status,) = struct.unpack_from("=i", kernel.recv(65536), 16)
    if status:
        raise OSError(-status, os.strerror(-status), f"netlink request {kind}")


if __name__ == "__main__":
    try:
        os.close(_move(0))
    except ValueError as error:
        sys.exit(str(error))
