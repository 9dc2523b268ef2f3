"""Checks of nodes before torchrun, on namespaces: what torchrun needs, and the faults that a user meets."""

import re
import socket

import pytest

from counterflow.doctor import endpoint
from counterflow.doctor.check import Status
from tests.helpers.launch import ROOT
from tests.helpers.nodes import PORT, Node, nodes, unavailable_reason
from tests.helpers.processes import Ended, Fresh, run_script

DOCTOR = str(ROOT / "launch" / "doctor.py")
needs_nodes = pytest.mark.skipif(unavailable_reason() is not None, reason=f"no namespaces: {unavailable_reason()}")


def check(rank: int, ranks: int, store_path: str, some: list[Node], host: str, options: list[str]) -> None:
    some[rank].enter()
    own = [option.replace("OWN", some[rank].address).replace("HOSTS", str(int(rank == 0))) for option in options]
    run_script(DOCTOR, ["--endpoint", f"{host}:{PORT}", "--nodes", str(len(some)), *own])


def run(some: list[Node], *options: str) -> list[Ended]:
    with Fresh(len(some), check, some, some[0].address, options) as started:
        return started.wait(60)


@needs_nodes
def test_nodes_that_reach_each_other_pass() -> None:
    with nodes(3) as some:
        ended = run(some, "--local-addr=OWN", "--is-host=HOSTS")
    for node, end in zip(some, ended, strict=True):
        assert end.status == 0, end.stdout + end.stderr
        others = {other.name for other in some if other is not node}
        assert {f"{name} by gloo" for name in others} <= set(re.findall(r"node\d by gloo", end.stdout))
        assert f"this node is {'' if node is some[0] else 'not '}{some[0].address}" in end.stdout


@needs_nodes
def test_a_name_that_other_nodes_cannot_resolve_fails_there() -> None:
    with nodes(2) as both:
        ended = run(both)
    assert [end.status for end in ended] == [1, 1]
    first = ended[0].stdout
    assert re.search(r"fail +node1 by name +node1: .* -> torchrun --local-addr=ADDRESS on node1", first)
    assert re.search(r"ok +node1 by gloo +10.88.0.2: reached", first)
    assert re.search(
        r"fail +is_host .* -> --rdzv-conf=is_host=1 on this node: this node's name does not resolve", first
    )


@needs_nodes
def test_a_node_off_the_network_fails_to_reach_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with nodes(2) as both:
        both[1].unplug()
        with Fresh(2, check_briefly, both) as started:
            first, second = started.wait(60)
    assert "1 of 2 came: node0" in first.stdout
    assert re.search(rf"endpoint fail {both[0].address}:{PORT}", second.stdout), second.stdout


def check_briefly(rank: int, ranks: int, store_path: str, both: list[Node]) -> None:
    both[rank].enter()
    for found in endpoint.check_endpoint((both[0].address, PORT), 2, both[rank].address, rank == 0, coming=4.0):
        print(found.name, found.status, found.result)


def test_a_host_that_torchrun_does_not_recognise() -> None:
    for hosts, believed in ((True, False), (False, True)):
        wrong = endpoint.check_is_host("head", "10.0.0.1", hosts, believed)
        assert wrong.status is Status.FAIL
        assert wrong.advice.startswith(f"--rdzv-conf=is_host={int(hosts)} on this node")
        assert endpoint.check_is_host("head", "10.0.0.1", hosts, hosts).status is Status.OK


def test_a_name_that_leads_to_another_node() -> None:
    with endpoint._probe() as (port, word):
        about = {"host": "other", "name": "localhost", "gloo": "127.0.0.1", "port": port, "word": word}
        assert [found.status for found in endpoint.check_node(about)] == [Status.OK, Status.OK]
        by_name, by_gloo = endpoint.check_node({**about, "word": "another", "gloo": None})
        assert "127.0.0.1 leads to another node" in by_name.result
        assert "names no interface" in by_gloo.result


def test_an_endpoint_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (found,) = endpoint.check_endpoint(("nowhere", PORT), 2, None)
    assert found.status is Status.FAIL
    assert "nowhere does not resolve" in found.result
