"""Check of listening sockets, with real ones on all kinds of addresses."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed as dist

from counterflow.doctor import listeners
from counterflow.doctor.check import Check, Status
from counterflow.doctor.listeners import (
    Listener,
    check_listeners,
    check_node_listeners,
    interface_addresses,
    node_listeners,
)
from counterflow.rank_info import RankInfo
from counterflow.transport.rendezvous import listen
from tests.helpers.ports import free_port, listening

GLOO, STORE = "gloo of this rank", "the launcher's store"


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(sockets: ExitStack, address: str) -> int:
    """Port of a new socket that listens on ``address``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = sockets.enter_context(socket.create_server((address, 0), family=family))
    return int(made.getsockname()[1])


def ranks(port: int, host: str = "127.0.0.1") -> RankInfo:
    return RankInfo(0, 2, 0, 2, master=(host, port))


def test_sockets_of_this_process_are_found(sockets: ExitStack) -> None:
    addresses = ["127.0.0.1", "0.0.0.0"]
    if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
        addresses += ["::", "::1"]
    ports = {opened(sockets, address): address for address in addresses}
    found = node_listeners(RankInfo(), [])
    assert {(listener.port, listener.address) for listener in found if listener.port in ports} == set(ports.items())
    assert {(listener.address, listener.port) for listener in found} == listening(os.getpid())


def test_a_store_that_torch_binds_itself_is_named() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = {listener for listener in node_listeners(ranks(store.port), ["127.0.0.1"]) if listener.port == store.port}
    check = check_listeners(found, ["127.0.0.1"], "lo")
    assert check == Check(
        "listeners",
        Status.WARN,
        f"{STORE} on all interfaces, port {store.port}",
        f"let only lo reach port {store.port}, by a firewall, a network namespace or a tunnel: docs/trust.md has the "
        "commands",
    )


def test_a_store_on_one_address_is_well() -> None:
    """As rank 0 hosts it where ranks are started by hand, and `cf.spawn`."""
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=taken.detach())
    found = {listener for listener in node_listeners(ranks(port), ["127.0.0.1"]) if listener.port == store.port}
    assert found == {Listener(STORE, "127.0.0.1", port)}
    assert check_listeners(found, ["127.0.0.1"], "lo").status is Status.OK


def test_a_store_of_another_node_is_not_looked_for(sockets: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program may have the same port here."""
    port = opened(sockets, "0.0.0.0")
    monkeypatch.setattr(listeners, "socket_inodes", lambda pid: set())
    for host, found in (("203.0.113.9", False), ("127.0.0.1", True), ("192.0.2.2", True), ("another", False)):
        assert ({STORE} == {x.owner for x in node_listeners(ranks(port, host), ["192.0.2.2"])}) is found, host


def test_the_agent_is_the_parent(sockets: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    port = opened(sockets, "0.0.0.0")
    monkeypatch.setattr(os, "getppid", os.getpid)
    agent = Listener("torchrun's agent", "0.0.0.0", port)
    assert agent in node_listeners(RankInfo(run_id="job"), [])
    assert agent not in node_listeners(RankInfo(), [])


def test_ipv6_addresses_of_an_interface(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000002 02 40 20 80     eth0\n"
    )
    assert list(interface_addresses("eth0", table)) == ["fe80::2"]
    assert list(interface_addresses("eth", table)) == []
    assert list(interface_addresses("lo", tmp_path / "none")) == []


def test_this_process_is_checked_against_gloos_choice(sockets: ExitStack) -> None:
    """A socket of this process on another address than gloo's is beyond it."""
    ports = [opened(sockets, address) for address in ("127.0.0.1", "0.0.0.0")]
    check = check_node_listeners(ranks(ports[1]), "127.0.0.1", {"lo": "127.0.0.1"})
    assert check.status is Status.WARN
    assert f"{STORE} on all interfaces, port {ports[1]}" in check.result
    assert str(ports[0]) not in check.result
    assert check.advice.startswith("let only lo reach port ")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", Status.OK),
        ("127.0.1.1", Status.OK),
        ("::1", Status.OK),
        ("192.0.2.2", Status.OK),
        ("fe80::1", Status.OK),
        ("0.0.0.0", Status.WARN),
        ("::", Status.WARN),
        ("192.0.2.3", Status.WARN),
        ("fe80::2", Status.WARN),
    ],
)
def test_the_chosen_interface_and_loopback_are_allowed(address: str, status: Status) -> None:
    check = check_listeners([Listener(GLOO, address, 5)], ["192.0.2.2", "fe80::1"], "eth0")
    assert check.status is status
    if status is Status.WARN:
        assert check.advice.startswith("let only eth0 reach port 5, by a firewall, ")


def test_all_that_listen_beyond_are_named() -> None:
    found = [Listener(STORE, "::", 29500), Listener(GLOO, "192.0.2.2", 7), Listener("torchrun's agent", "::", 29400)]
    check = check_listeners(found, ["192.0.2.2"], None)
    assert check.result == f"{STORE} on all interfaces, port 29500; torchrun's agent on all interfaces, port 29400"
    assert check.advice.startswith("let only the interface between the nodes reach port 29400, 29500, by ")


def test_without_the_kernels_tables_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "listening_sockets", lambda: {})
    check = check_node_listeners(ranks(free_port()), "127.0.0.1", {"lo": "127.0.0.1"})
    assert check == Check("listeners", Status.OK, "no socket was found")
