"""Checks of names, interfaces and ports, with faults put in."""

import socket
import time

import pytest

from counterflow.doctor import network
from counterflow.doctor.check import Status
from counterflow.doctor.network import NameLookup

INTERFACES = {"lo": "127.0.0.1", "eth0": "192.0.2.2"}


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    lookup = network.resolve("nowhere")
    check = network.check_host_name(lookup)
    assert (lookup.address, check.status) == (None, Status.WARN)
    assert "nowhere does not resolve: Name or service not known" in check.result
    assert "--local-addr" in check.advice


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(2))
    monkeypatch.setattr(network, "_NAME_TIMEOUT", 0.1)
    lookup = network.resolve("far")
    assert lookup.address is None
    assert lookup.seconds < 1.5
    assert "nothing within 0.1 s" in network.check_host_name(lookup).result


def test_a_slow_name() -> None:
    assert network.check_host_name(NameLookup("vm", "127.0.0.1", 0.01)).status is Status.OK
    assert network.check_host_name(NameLookup("vm", "127.0.0.1", 1.5)).status is Status.WARN


def test_address_of_gloo() -> None:
    assert network.gloo_address("eth0", None, INTERFACES) == ("GLOO_SOCKET_IFNAME=eth0", "192.0.2.2")
    assert network.gloo_address("lo,eth0", None, INTERFACES)[1] == "127.0.0.1"
    assert network.gloo_address("", "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    for missing in ("eth7", "eth0,eth7"):
        assert network.gloo_address(missing, "127.0.0.1", INTERFACES)[1] is None
    assert network.gloo_address(None, "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    assert network.gloo_address(None, None, INTERFACES)[1] == "127.0.0.1"
    assert network.gloo_address(None, "203.0.113.9", INTERFACES)[1] == "127.0.0.1"  # another machine's


def test_an_interface_that_other_nodes_reach() -> None:
    assert (
        network.check_interface("a way", "127.0.0.1", True, INTERFACES).result
        == "gloo listens on 127.0.0.1 (lo), by a way"
    )
    assert network.check_interface("a way", "192.0.2.2", False, INTERFACES).status is Status.OK
    unreachable = network.check_interface("a way", "127.0.1.1", False, INTERFACES)
    assert unreachable.status is Status.FAIL
    assert "GLOO_SOCKET_IFNAME" in unreachable.advice
    missing = network.check_interface("GLOO_SOCKET_IFNAME=eth7", None, True, INTERFACES)
    assert (missing.status, missing.advice) == (Status.FAIL, "one of lo (127.0.0.1), eth0 (192.0.2.2)")


def test_ports() -> None:
    assert network.check_port("127.0.0.1").status is Status.OK
    assert network.check_port("203.0.113.9").status is Status.FAIL  # no address of this machine
    assert "127.0.0.1" in network.interfaces().values()
