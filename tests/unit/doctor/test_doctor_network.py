"""Checks of names, interfaces and ports, with faults put in."""

import socket
import time

import pytest

from counterflow.doctor import machine
from counterflow.doctor.check import Status

INTERFACES = {"lo": "127.0.0.1", "eth0": "192.0.2.2"}


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    address, seconds, error = machine.resolve("nowhere")
    check = machine.check_host_name("nowhere", address, seconds, error)
    assert (address, check.status) == (None, Status.WARN)
    assert "nowhere does not resolve: Name or service not known" in check.result
    assert "--local-addr" in check.advice


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(2))
    monkeypatch.setattr(machine, "_NAME_TIMEOUT", 0.1)
    address, seconds, error = machine.resolve("far")
    assert address is None
    assert seconds < 1.5
    assert "nothing within 0.1 s" in machine.check_host_name("far", address, seconds, error).result


def test_a_slow_name() -> None:
    assert machine.check_host_name("vm", "127.0.0.1", 0.01, "").status is Status.OK
    assert machine.check_host_name("vm", "127.0.0.1", 1.5, "").status is Status.WARN


def test_address_of_gloo() -> None:
    assert machine.gloo_address("eth0", None, INTERFACES) == ("GLOO_SOCKET_IFNAME=eth0", "192.0.2.2")
    assert machine.gloo_address("lo,eth0", None, INTERFACES)[1] == "127.0.0.1"
    assert machine.gloo_address("", "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    for missing in ("eth7", "eth0,eth7"):
        assert machine.gloo_address(missing, "127.0.0.1", INTERFACES)[1] is None
    assert machine.gloo_address(None, "127.0.0.1", INTERFACES) == ("the host's name", "127.0.0.1")
    assert machine.gloo_address(None, None, INTERFACES)[1] == "127.0.0.1"
    assert machine.gloo_address(None, "203.0.113.9", INTERFACES)[1] == "127.0.0.1"  # another machine's


def test_an_interface_that_other_nodes_reach() -> None:
    assert (
        machine.check_interface("a way", "127.0.0.1", True, INTERFACES).result
        == "gloo listens on 127.0.0.1 (lo), by a way"
    )
    assert machine.check_interface("a way", "192.0.2.2", False, INTERFACES).status is Status.OK
    unreachable = machine.check_interface("a way", "127.0.1.1", False, INTERFACES)
    assert unreachable.status is Status.FAIL
    assert "GLOO_SOCKET_IFNAME" in unreachable.advice
    missing = machine.check_interface("GLOO_SOCKET_IFNAME=eth7", None, True, INTERFACES)
    assert (missing.status, missing.advice) == (Status.FAIL, "one of lo (127.0.0.1), eth0 (192.0.2.2)")


def test_ports() -> None:
    assert machine.check_port("127.0.0.1").status is Status.OK
    assert machine.check_port("203.0.113.9").status is Status.FAIL  # no address of this machine
    assert "127.0.0.1" in machine.interface_addresses().values()
