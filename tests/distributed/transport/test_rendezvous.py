"""Rendezvous, and the addresses on which a run listens, read from the kernel's tables."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from counterflow.rank_info import RankInfo
from counterflow.topology import Topology
from counterflow.transport import ChannelError, connect, rendezvous
from counterflow.transport.rendezvous import interfaces, listen
from tests.helpers.links import DOWN, ROWS, UP, batches, filled, rows, same_bits
from tests.helpers.ports import free_port, listening
from tests.helpers.processes import Ended, by_hand, run_fresh, run_rank

LOOPBACK = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
ONE_NODE = RankInfo(size=2, local_size=2)


# -- which interface


@pytest.mark.parametrize(
    ("variables", "one_node"),
    [
        ({"MASTER_ADDR": "192.0.2.1", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"MASTER_ADDR": "nowhere.invalid"}, False),
        ({"MASTER_ADDR": "127.0.0.1"}, True),
        ({"MASTER_ADDR": "::1"}, True),
        ({"MASTER_ADDR": "localhost"}, True),
        ({"MASTER_ADDR": "192.0.2.1"}, False),
        ({"MASTER_ADDR": socket.gethostname()}, False),  # other machines may know it by another address
    ],
)
def test_loopback_is_chosen_where_all_ranks_are_on_one_node(variables: dict[str, str], one_node: bool) -> None:
    expected = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": f"={LOOPBACK}"} if one_node else {}
    info = RankInfo.from_env(by_hand(0, 2, 1, **variables))
    assert interfaces(info, {}) == expected
    assert interfaces(info, {"GLOO_SOCKET_IFNAME": ""}) == expected


def test_variables_that_are_set_stay() -> None:
    for _, name in socket.if_nameindex():
        assert interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": name}) == {}
    assert interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": f"{LOOPBACK},{LOOPBACK}"}) == {}
    assert interfaces(ONE_NODE, {"NCCL_SOCKET_IFNAME": "eth0"}) == {"GLOO_SOCKET_IFNAME": LOOPBACK}


@pytest.mark.parametrize("chosen", ["127.0.0.1", "127.0.0.0/8", f"127.0.0.1,{LOOPBACK}"])
def test_an_interface_may_be_named_by_its_address(chosen: str) -> None:
    named = interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": chosen})
    names = ",".join([LOOPBACK] * len(chosen.split(",")))
    assert named == {"GLOO_SOCKET_IFNAME": names, "NCCL_SOCKET_IFNAME": f"={LOOPBACK}"}
    assert set(interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": chosen, "NCCL_SOCKET_IFNAME": "eth0"})) == {
        "GLOO_SOCKET_IFNAME"
    }


@pytest.mark.parametrize("chosen", ["240.0.0.1", "240.0.0.0/8"])
def test_an_address_that_no_interface_has_is_refused(chosen: str) -> None:
    message = rf"^GLOO_SOCKET_IFNAME={chosen}: no interface of this machine has an address {chosen}, it has [^\n]*$"
    with pytest.raises(ValueError, match=message):
        interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": chosen})


@pytest.mark.parametrize("name", ["nope", f"{LOOPBACK},nope"])
def test_an_interface_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        interfaces(ONE_NODE, {"GLOO_SOCKET_IFNAME": name})
    found = ", ".join(name for _, name in socket.if_nameindex())
    assert str(error.value) == f"GLOO_SOCKET_IFNAME={name}: nope is no interface of this machine, it has {found}"


# -- where the store listens


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")])
def test_listening_is_on_one_address(host: str, address: str) -> None:
    port, before = free_port(), listening(os.getpid())
    with listen(host, port) as listener:
        assert listener.getsockname() == (address, port)
        assert listening(os.getpid()) - before == {(address, port)}


@pytest.mark.parametrize("host", ["192.0.2.77", "nowhere.invalid"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^MASTER_ADDR={host} MASTER_PORT=\d+: rank 0 cannot listen there \([^\n]+\)$"
    ):
        listen(host, free_port())


def test_a_port_that_is_taken_is_refused() -> None:
    with listen("127.0.0.1", free_port()) as listener, pytest.raises(ValueError, match="Address already in use"):
        listen("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASTER_PORT", ""), ("MASTER_PORT", "http"), ("MASTER_PORT", "65536"), ("MASTER_ADDR", ""), ("RANK", "2"),
     ("RANK", "-1"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "two")],
)  # fmt: skip
def test_a_wrong_environment_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, right in {**by_hand(0, 2, 1), name: value}.items():
        monkeypatch.setenv(key, right)
    with pytest.raises(ValueError, match=rf"^{name}[=:][^\n]*$"):
        rendezvous(RankInfo.from_env(), 1)


def test_one_process_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rendezvous(RankInfo.from_env(), 1) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rendezvous(RankInfo.from_env(), 1) is None


# -- real processes


def meet(rank: int, size: int, store_path: str, port: int, agent: bool) -> None:
    """Meet as the launcher does, open all edges, and print the sockets that listen meanwhile."""
    os.environ.update(by_hand(rank, size, port))
    if agent:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    comm = connect(rendezvous(RankInfo.from_env(), 20), rank, size, timeout=20)
    comm.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    comm.all_gather(None, "all is open")
    print(json.dumps(sorted(listening(os.getpid()))), file=sys.stderr, flush=True)
    comm.all_gather(None, "all has been read")
    os._exit(0)


def sockets(ended: Ended) -> list[list[Any]]:
    """Address and port of every socket that listened in a process of `meet`."""
    assert ended.status == 0, ended
    found: list[list[Any]] = json.loads(ended.stderr)
    return found


def test_only_loopback_listens_in_a_run_started_by_hand() -> None:
    port = free_port()
    first, second = map(sockets, run_fresh(2, meet, port, False, timeout=60))
    assert {address for address, _ in first + second} == {"127.0.0.1"}
    assert ["127.0.0.1", port] in first
    # A socket of gloo for the group of all ranks and for each of two directed edges, in both ranks.
    assert (len(first), len(second)) == (4, 3)


def test_under_an_agent_no_rank_hosts_the_store() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = map(sockets, run_fresh(2, meet, store.port, True, timeout=60))
    assert {address for address, _ in first + second} == {"127.0.0.1"}
    assert (len(first), len(second)) == (3, 3)
    # The agent creates its store with the same call, which ignores the address and listens on all interfaces.
    assert listening(os.getpid()) & {("::", store.port), ("0.0.0.0", store.port)}


def alone(rank: int, size: int, store_path: str, its_rank: int, port: int) -> None:
    """Wait a second for the other rank, which does not come."""
    os.environ.update(by_hand(its_rank, 2, port))
    try:
        rendezvous(RankInfo.from_env(), 1.0)
    except ChannelError as error:
        print(error, file=sys.stderr, flush=True)
    os._exit(0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_in_vain_says_so_in_one_line(rank: int) -> None:
    port = free_port()
    (ended,) = run_fresh(1, alone, rank, port, timeout=60)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"rank {rank}: the 2 ranks did not meet at 127.0.0.1:{port}: ")
    assert ended.seconds < 20


# -- one store, several runs


def run_twice(rank: int, size: int, store_path: str, port: int, pause: float) -> None:
    """Join the store and connect, three times; print the numbers of threads and of open files after each."""
    os.environ.update(by_hand(rank, size, port))
    for i in range(3):
        store = rendezvous(RankInfo.from_env(), 20)
        comm = connect(store, rank, size, timeout=20)
        comm.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
        edge, other = (UP, DOWN) if rank == 0 else (DOWN, UP)
        sender, receiver = comm.sender(edge, rows), comm.receiver(other, rows, 2, batches(3))
        for tag in batches(3):
            sender.send(tag, filled(ROWS, tag.n))
            assert same_bits(receiver.receive(tag), filled(ROWS, tag.n))
            receiver.release()
        sender.close()
        receiver.close()
        assert comm.poll_report(1 - rank, 0) is None, "a report of the run before"
        assert comm.all_gather((i, rank), "run") == [(i, r) for r in range(size)]
        assert comm.gather(i, "i") == ([i, i] if rank == 0 else None)
        comm.send_report(f"run {i}")
        if rank == i % 2:
            time.sleep(pause)
        comm.close()
        assert not dist.is_initialized()
        print(threading.active_count(), len(os.listdir("/proc/self/fd")), file=sys.stderr, flush=True)
    os._exit(0)


def test_several_runs_in_one_process_share_the_launchers_store() -> None:
    for ended in run_fresh(2, run_twice, free_port(), 0.3, timeout=60):
        assert ended.status == 0, ended
        counts = [tuple(map(int, line.split())) for line in ended.stderr.splitlines()]
        (_, _), (threads, files), (threads_after, files_after) = counts
        assert threads_after == threads, counts
        assert files_after <= files, counts  # the third run leaves nothing behind; gloo closes some sockets later


# -- a store that dies


def train_until_the_store_dies(rank: int, size: int, store_path: str, port: int, overrides: list[str]) -> None:
    """Ranks 0 and 1 train; the third process hosts their store, as torchrun's agent does, and is killed meanwhile."""
    if rank < 2:
        run_rank(rank, 2, store_path, port, overrides, agent=True)
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    metrics = Path(store_path).parent / "work" / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    time.sleep(0.5)
    assert store.port == port
    os.kill(os.getpid(), signal.SIGKILL)


STORE_JOB = [
    "train.steps=1000000", "blocks=2", "model.width=16", "engine.threads=1", "run.display=false", "run.dir=run",
]  # fmt: skip


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["train.log_every=100000", "checkpoint.every=0", "train.evaluate_every=100000"],
        ["algorithm=bp", "train.batch_size=32", "train.microbatches=2"],
        ["engine.recovery=rank", "checkpoint.every=20"],
    ],
    ids=["reports", "no reports", "pipelined", "recovery"],
)
def test_when_the_store_dies_every_rank_says_so_in_one_line(options: list[str]) -> None:
    port = free_port()
    *ranks, store = run_fresh(3, train_until_the_store_dies, port, [*STORE_JOB, *options], timeout=110)
    assert store.status == -signal.SIGKILL
    for rank, ended in enumerate(ranks):
        (line,) = ended.stderr.splitlines()
        assert re.fullmatch(
            rf"error: rank {rank}: the launcher's store at 127\.0\.0\.1:{port} does not answer \([^()]+\)", line
        ), ended
        assert ended.status == 1
        assert store.seconds <= ended.seconds < store.seconds + 10
