"""What listens, and where: read from the kernel's tables while a run is under way."""

import json
import os
import socket
import sys
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from counterflow.topology import Topology
from counterflow.transport import ChannelError, connect
from counterflow.transport.interface import interfaces, listen, rendezvous
from tests.helpers.processes import Ended, run_fresh
from tests.stress.test_hostile_ports import free_port, listening

LOOPBACK = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
ONE_NODE = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
TWO_NODES = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def by_hand(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}


# -- which interface


@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        (ONE_NODE, True),
        (TWO_NODES, False),
        ({"WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "::1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1"}, False),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": socket.gethostname()}, False),  # others may know it by another address
    ],
)
def test_loopback_is_chosen_where_all_ranks_are_on_one_node(environment: dict[str, str], alone: bool) -> None:
    expected = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": f"={LOOPBACK}"} if alone else {}
    assert interfaces(environment) == expected
    assert interfaces({**environment, "GLOO_SOCKET_IFNAME": ""}) == expected


def test_what_is_set_stays() -> None:
    for _, name in socket.if_nameindex():
        assert interfaces({**ONE_NODE, "GLOO_SOCKET_IFNAME": name}) == {}
    assert interfaces({**ONE_NODE, "GLOO_SOCKET_IFNAME": f"{LOOPBACK},{LOOPBACK}"}) == {}
    assert interfaces({**ONE_NODE, "NCCL_SOCKET_IFNAME": "eth0"}) == {"GLOO_SOCKET_IFNAME": LOOPBACK}


@pytest.mark.parametrize("name", ["nope", f"{LOOPBACK},nope"])
def test_an_interface_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        interfaces({**ONE_NODE, "GLOO_SOCKET_IFNAME": name})
    found = ", ".join(name for _, name in socket.if_nameindex())
    assert str(error.value) == f"GLOO_SOCKET_IFNAME={name}: nope is no interface of this machine, it has {found}"


# -- where the store listens


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")])
def test_listening_is_on_one_address(host: str, address: str) -> None:
    port = free_port()
    with listen(host, port) as listener:
        assert listener.getsockname() == (address, port)
        assert listening(os.getpid()) == {(address, port)}


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
        rendezvous(1)


def test_one_process_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rendezvous(1) == (None, 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rendezvous(1) == (None, 0, 1)


# -- real processes


def meet(rank: int, size: int, store_path: str, port: int, agent: bool) -> None:
    """Meet as the launcher does, open all edges, and say what listens while everything is open."""
    os.environ.update(by_hand(rank, size, port))
    if agent:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    comm = connect(*rendezvous(20), timeout=20)
    comm.open_edges(Topology(size, size), "gloo", torch.device("cpu"))
    comm.all_gather(None, "all is open")
    print(json.dumps(sorted(listening(os.getpid()))), file=sys.stderr, flush=True)
    comm.all_gather(None, "all has been read")
    os._exit(0)


def sockets(ended: Ended) -> list[list[Any]]:
    """Address and port of everything that listened in a process of `meet`."""
    assert ended.status == 0, ended
    found: list[list[Any]] = json.loads(ended.stderr)
    return found


def test_only_loopback_listens_in_a_run_started_by_hand() -> None:
    port = free_port()
    first, second = map(sockets, run_fresh(2, meet, port, False, timeout=60))
    assert {address for address, _ in first + second} == {"127.0.0.1"}
    assert ["127.0.0.1", port] in first
    # The world and two directed edges: a socket of gloo for each, in both ranks.
    assert (len(first), len(second)) == (4, 3)


def test_under_an_agent_no_rank_hosts_the_store() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second = map(sockets, run_fresh(2, meet, store.port, True, timeout=60))
    assert {address for address, _ in first + second} == {"127.0.0.1"}
    assert (len(first), len(second)) == (3, 3)
    # The agent makes its own with the same call: on all interfaces, whatever address it is told.
    assert listening(os.getpid()) & {("::", store.port), ("0.0.0.0", store.port)}


def alone(rank: int, size: int, store_path: str, its_rank: int, port: int) -> None:
    """Wait a second for the other rank, which does not come."""
    os.environ.update(by_hand(its_rank, 2, port))
    try:
        rendezvous(1.0)
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
