"""Emulated links between processes: packets arrive when the requested link would deliver them.

Every rank is a fresh process, since a process that has joined stays in the network.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from counterflow.bench import netem
from counterflow.bench.netem import (
    INTERFACE,
    JoinHandle,
    LinkSpeed,
    emulated_network,
    ip_address,
    join,
    unavailable_reason,
)
from counterflow.bench.netem_router import _is_pure_ack
from tests.helpers.processes import Ended, run_fresh

REASON = unavailable_reason()
needs_network = pytest.mark.skipif(REASON is not None, reason=str(REASON))

GIGABIT = LinkSpeed(bandwidth=125e6, latency=0.01)
PORT = 5000
MB = 1 << 20
LOADED = 1.5
"""Allowed ratio of a transfer to its ideal time on a busy machine. Two links that share one bandwidth would need 2."""


def listen(rank: int) -> socket.socket:
    return socket.create_server((ip_address(rank), PORT))


def connect(rank: int) -> socket.socket:
    """Connect to a rank that may not listen yet."""
    for _ in range(500):
        try:
            return socket.create_connection((ip_address(rank), PORT), timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError(f"rank {rank} does not listen")


def read(connection: socket.socket, count: int) -> None:
    view = memoryview(bytearray(min(count, MB)))
    while count:
        got = connection.recv_into(view[: min(len(view), count)])
        assert got, f"{count} bytes did not come"
        count -= got


def run(ranks: int, speed: LinkSpeed, task: Callable[..., Any], *args: Any, timeout: float = 40) -> list[Ended]:
    """``task(rank, ranks, store_path, handle, *args)`` in the ranks of a network; each has to exit with 0."""
    with emulated_network(ranks, speed) as handle:
        ended = run_fresh(ranks, task, handle, *args, timeout=timeout)
    assert [end.status for end in ended] == [0] * ranks, [end.stderr for end in ended]
    return ended


def measured(folder: Path) -> list[list[float]]:
    """Seconds that the ranks wrote to files."""
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def echo(rank: int, ranks: int, store_path: str, handle: JoinHandle, folder: str) -> None:
    """Rank 0 writes to a file how many seconds a byte takes to rank 1 and back, ten times."""
    join(handle, rank)
    if rank == 1:
        with listen(1) as server, server.accept()[0] as connection:
            while byte := connection.recv(1):
                connection.send(byte)
        return
    seconds = []
    with connect(1) as connection:
        for _ in range(10):
            start = time.perf_counter()
            connection.send(b"?")
            read(connection, 1)
            seconds.append(time.perf_counter() - start)
    Path(folder, "0").write_text(json.dumps(seconds))


@needs_network
def test_a_round_trip_takes_the_latency_twice(tmp_path: Path) -> None:
    run(2, GIGABIT, echo, str(tmp_path))
    (seconds,) = measured(tmp_path)
    assert 0.02 <= min(seconds) < 0.023


def exchange(
    rank: int, ranks: int, store_path: str, handle: JoinHandle, folder: str, pairs: list[tuple[int, int]], size: int
) -> None:
    """The ranks of every pair send ``size`` bytes to each other, three times. Each writes its start and end times."""
    join(handle, rank)
    store = dist.FileStore(store_path, ranks)
    with listen(rank) as server:
        connections = [connect(upper) for lower, upper in pairs if lower == rank]
        connections += [server.accept()[0] for _, upper in pairs if upper == rank]
    content = bytes(size)
    times = []
    for repeat in range(3):
        store.add(f"ready {repeat}", 1)
        while store.add(f"ready {repeat}", 0) < ranks:
            time.sleep(0.01)
        start = time.monotonic()
        for connection in connections:
            connection.sendall(content)  # into the kernel: windows are large
        for connection in connections:
            read(connection, size)
        times.append((start, time.monotonic()))
        for connection in connections:
            connection.send(b"!")
            read(connection, 1)
    Path(folder, str(rank)).write_text(json.dumps(times))


@needs_network
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_small_packets_arrive_also_if_some_are_lost(tmp_path: Path, loss: float) -> None:
    speed, size = LinkSpeed(bandwidth=4e6, latency=0.005, internet=True, loss=loss), MB
    run(2, speed, exchange, str(tmp_path), [(0, 1)], size)
    headers = 1500 / 1448  # of IP and TCP, with a timestamp
    for times in measured(tmp_path):
        assert all(end - start > headers * size / speed.bandwidth for start, end in times)


def test_packets_are_lost_on_the_internet_alone() -> None:
    with pytest.raises(ValueError, match=r"loss=0\.1: must be between 0 and 0\.5, and 0 without internet"):
        LinkSpeed(bandwidth=1e6, latency=0.0, loss=0.1)


def assert_full_speed(folder: Path, size: int, speed: LinkSpeed) -> None:
    """In an `exchange` every rank received all bytes no sooner than its link allows, and once not much later."""
    ideal = size / speed.bandwidth + speed.latency
    repeats = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
    for rank, times in enumerate(repeats):
        since_first = [end - min(other[i][0] for other in repeats) for i, (_, end) in enumerate(times)]
        since_last = [end - max(other[i][0] for other in repeats) for i, (_, end) in enumerate(times)]
        assert ideal < min(since_first), rank
        assert min(since_last) < LOADED * ideal, rank


@needs_network
def test_a_large_transfer_takes_its_size_over_the_bandwidth(tmp_path: Path) -> None:
    """Both ways at once."""
    size = 24 * MB
    run(2, GIGABIT, exchange, str(tmp_path), [(0, 1)], size)
    assert_full_speed(tmp_path, size, GIGABIT)


@needs_network
def test_every_link_has_a_bandwidth_of_its_own(tmp_path: Path) -> None:
    """A chain of 8 ranks that uses all of its 14 links at once."""
    speed, size = LinkSpeed(bandwidth=12.5e6, latency=0.02), 4 * MB
    run(8, speed, exchange, str(tmp_path), [(rank, rank + 1) for rank in range(7)], size)
    assert_full_speed(tmp_path, size, speed)


def tcp(flags: int, options: int = 12, payload: int = 0) -> bytes:
    """A packet with the fields that the router reads."""
    header = struct.pack("!BxHxxxxxBxx4s4s", 0x45, 40 + options + payload, 6, bytes(4), bytes(4))
    return header + struct.pack("!12xBB6x", (20 + options) // 4 << 4, flags) + bytes(options + payload)


def test_only_acknowledgements_overtake() -> None:
    assert _is_pure_ack(tcp(0x10))
    assert _is_pure_ack(tcp(0x10, options=40))
    for packet in (tcp(0x10, payload=1), tcp(0x18, payload=20), tcp(0x12), tcp(0x11), tcp(0x10, payload=2000)):
        assert not _is_pure_ack(packet)
    assert not _is_pure_ack(bytes([0x45, *bytes(8), 17, *bytes(70)]))


def gloo(rank: int, ranks: int, store_path: str, handle: JoinHandle, folder: str, size: int) -> None:
    """Rank 0 writes the seconds from sending a message after a pause to a short answer, three times."""
    join(handle, rank)
    os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
    store = dist.TCPStore(ip_address(0), PORT, ranks, is_master=rank == 0, timeout=timedelta(seconds=20))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=20))
    message, answer, seconds = torch.zeros(size, dtype=torch.uint8), torch.zeros(1), []
    for _ in range(3):
        if rank == 0:
            receipt = dist.irecv(answer, 1, tag=1)
            time.sleep(0.1)
            start = time.perf_counter()
            dist.isend(message, 1, tag=2).wait()
            receipt.wait()
            seconds.append(time.perf_counter() - start)
        else:
            dist.irecv(message, 0, tag=2).wait()
            dist.isend(answer, 0, tag=1).wait()
    dist.destroy_process_group()
    if rank == 0:
        Path(folder, "0").write_text(json.dumps(seconds))


@needs_network
@pytest.mark.parametrize("size", [MB, 4 * MB])
def test_gloo_goes_over_it(tmp_path: Path, size: int) -> None:
    """The first message after a pause is sent at full speed too."""
    run(2, GIGABIT, gloo, str(tmp_path), size)
    (seconds,) = measured(tmp_path)
    ideal = size / GIGABIT.bandwidth + 2 * GIGABIT.latency
    assert ideal < min(seconds) < 1.3 * ideal


def send_and_exit(rank: int, ranks: int, store_path: str, handle: JoinHandle) -> None:
    join(handle, rank)
    if rank == 1:
        connection = connect(0)
        connection.sendall(bytes(MB))
        os._exit(0)
    with listen(0) as server, server.accept()[0] as connection:
        connection.settimeout(10)
        read(connection, MB)
        assert not connection.recv(1)


@needs_network
def test_bytes_sent_before_a_rank_exits_arrive() -> None:
    run(2, GIGABIT, send_and_exit)


def join_again(rank: int, ranks: int, store_path: str, handle: JoinHandle, folder: str) -> None:
    """Rank 1 exits after a first echo, and joins again as a new process."""
    if rank == 1:
        for _ in range(2):
            child = os.fork()
            if not child:
                echo(1, 2, store_path, handle, folder)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        return
    join(handle, 0)
    for _ in range(2):
        with connect(1) as connection:
            connection.send(b"?")
            read(connection, 1)
            connection.shutdown(socket.SHUT_WR)
            assert not connection.recv(1)
    Path(folder, "0").write_text("[]")


@needs_network
def test_a_rank_may_join_again(tmp_path: Path) -> None:
    run(2, LinkSpeed(125e6, 0.001), join_again, str(tmp_path))
    assert measured(tmp_path) == [[]]


def refused(rank: int, ranks: int, store_path: str, handle: JoinHandle, error: str) -> None:
    netem._TUN = "/nowhere/tun"
    with pytest.raises(ValueError, match=error):
        join(handle, rank)


def test_a_machine_without_tunnels_is_refused() -> None:
    (ended,) = run_fresh(
        1, refused, JoinHandle("/nowhere/router", 1, 0), "^slow links: this machine does not allow .*", timeout=20
    )
    assert ended.status == 0, ended.stderr


def test_unavailable_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attempt.py").write_text("import sys\nsys.exit('slow links: not here')")
    monkeypatch.setattr(netem, "__file__", str(tmp_path / "attempt.py"))
    assert unavailable_reason() == "slow links: not here"


def late(rank: int, ranks: int, store_path: str, handle: JoinHandle) -> None:
    netem._JOIN_SECONDS = 0.5
    with pytest.raises(RuntimeError, match=r"^network: rank 0: not all 2 ranks joined within 0\.5 s$"):
        join(handle, rank)
    with pytest.raises(RuntimeError, match=r"^network: rank 0: .*No such file"):
        join(JoinHandle("/nowhere/router", 2, 0), rank)


@needs_network
def test_join_has_a_time_limit() -> None:
    with emulated_network(2, GIGABIT) as handle:
        (ended,) = run_fresh(1, late, handle, timeout=20)
    assert ended.status == 0, ended.stderr


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text()


def test_nothing_is_left() -> None:
    with emulated_network(3, GIGABIT) as handle:
        assert Path(handle.path).exists()
        assert not gone(handle.router_pid)
    assert gone(handle.router_pid)
    assert not Path(handle.path).parent.exists()


def test_the_router_ends_with_its_parent() -> None:
    code = (
        "import os\nfrom counterflow.bench.netem import LinkSpeed, emulated_network\n"
        "with emulated_network(2, LinkSpeed(1e6, 0.1)) as handle:\n"
        "    print(handle.router_pid, handle.path, flush=True)\n    os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    pid, path = done.stdout.split()
    deadline = time.monotonic() + 10
    while not gone(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(int(pid))
    assert not Path(path).parent.exists()


@pytest.mark.parametrize(
    ("bandwidth", "latency", "error"),
    [
        (1e9, 0.1, "bandwidth=1000000000.0: at a latency of 0.1 s at most 8.39e+07 bytes/s"),
    ],
)
def test_link_speeds_are_checked(bandwidth: float, latency: float, error: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(error)):
        LinkSpeed(bandwidth, latency)


def test_numbers_of_ranks_are_checked() -> None:
    for ranks in (0, 255):
        with pytest.raises(ValueError, match=rf"^ranks={ranks}: 1\.\.254$"), emulated_network(ranks, GIGABIT):
            pass
    with pytest.raises(ValueError, match=r"^rank=2: 0\.\.1$"):
        join(JoinHandle("/nowhere/router", 2, 0), 2)
