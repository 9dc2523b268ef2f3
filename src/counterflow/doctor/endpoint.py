"""Checks of several nodes before torchrun: its meeting point, the names that it tells, and the way from node to node.

Every node runs them at the same time. The one that the endpoint names hosts a store there, as torchrun's agent will.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname

from counterflow.doctor.check import Check, Status, with_timeout
from counterflow.doctor.diagnostics import post
from counterflow.doctor.machine import gloo_address, resolve
from counterflow.transport.rendezvous import interface_addresses, interface_names

_COMING = 60.0
"""Seconds in which all nodes have to start the check."""
_REACHED_WITHIN = 3.0
"""Seconds to resolve a name, or to connect."""
_POLL = 0.05
"""Seconds between two looks at the store."""


def check_endpoint(
    endpoint: tuple[str, int],
    nodes: int,
    local_addr: str | None = None,
    is_host: bool | None = None,
    coming: float = _COMING,
) -> list[Check]:
    """Run the checks on one node; return those that it has to print.

    Args:
        endpoint: Host and port of ``--rdzv-endpoint``.
        nodes: Number of nodes that do the same.
        local_addr: Value of torchrun's ``--local-addr``; None if it is not given.
        is_host: Value of ``is_host`` in torchrun's ``--rdzv-conf``; None if it is not given.
        coming: Seconds in which the others have to start.
    """
    host, _ = endpoint
    address, _, error = resolve(host)
    if address is None:
        advice = "an address in place of the name, or the name in /etc/hosts of every node"
        return [Check("endpoint", Status.FAIL, f"{host} does not resolve: {error}", advice)]
    own = interface_addresses()
    hosts = address in own.values()
    checks = [check_is_host(host, address, hosts, _believed(host) if is_host is None else is_host)]
    try:
        store = _store(endpoint, hosts, coming)
    except (RuntimeError, OSError) as failure:
        reason = str(failure).splitlines()[0]
        advice = "another port" if hosts else f"start the check on {host} too; else a firewall is between"
        return [*checks, Check("endpoint", Status.FAIL, f"{host}:{endpoint[1]} ({address}): {reason}", advice)]
    checks.append(Check("endpoint", Status.OK, f"{host}:{endpoint[1]} ({address}) {'listens' if hosts else 'answers'}"))
    return checks + _meet(store, nodes, local_addr or socket.getfqdn(socket.gethostname()), own, coming)


def check_is_host(host: str, address: str, hosts: bool, believed: bool | None) -> Check:
    """Check that torchrun knows which node has to host the meeting point.

    Args:
        host: Host of the endpoint.
        address: Address of that host, as this node resolves it.
        hosts: That is an address of this node.
        believed: torchrun takes this node for that host, or was told so; None if it ends because this node's own name
            has no address.
    """
    result = f"this node is {'' if hosts else 'not '}{host} ({address})"
    reason = "this node's name does not resolve" if believed is None else "torchrun takes it otherwise"
    advice = f"--rdzv-conf=is_host={int(hosts)} on this node: {reason}"
    return Check.judge("is_host", result, (hosts != believed, Status.FAIL, advice))


def _believed(host: str) -> bool | None:
    """True if torchrun, left alone, takes this node for ``host``; None if that ends it."""
    try:
        return _matches_machine_hostname(host)
    except OSError:
        return None


def _store(endpoint: tuple[str, int], hosts: bool, seconds: float) -> Store:
    """The store at ``endpoint``. Raises ``RuntimeError`` or ``OSError``."""
    if not hosts:  # the store would wait as well, and print pages
        end = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(endpoint, _REACHED_WITHIN).close()
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL)
    return TCPStore(*endpoint, is_master=hosts, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def _meet(store: Store, nodes: int, name: str, own: Mapping[str, str], coming: float) -> list[Check]:
    setting = os.environ.get("GLOO_SOCKET_IFNAME", "")
    with contextlib.suppress(ValueError):  # then it is no interface, and reported so
        setting = interface_names(setting)
    resolved, _, _ = resolve(socket.gethostname())
    _, gloo = gloo_address(setting, resolved, own)
    with _probe() as (port, word):
        me = store.add("nodes", 1) - 1
        post(
            store, f"node/{me}", {"host": socket.gethostname(), "name": name, "gloo": gloo, "port": port, "word": word}
        )
        came = _await(store, nodes, "node", coming)
        checks = [_check_coming(nodes, came)]
        for number, about in came.items():
            if number != me:
                checks += check_node(about)
        post(store, f"done/{me}", None)
        _await(store, len(came), "done", coming)  # others may still try to reach this node, or the store
    return checks


def _check_coming(nodes: int, came: Mapping[int, Any]) -> Check:
    names = ", ".join(about["host"] for about in came.values())
    advice = "start the check on all nodes at the same time, with the same endpoint"
    return Check.judge("nodes", f"{len(came)} of {nodes} came: {names}", (len(came) != nodes, Status.FAIL, advice))


def check_node(about: Mapping[str, Any]) -> list[Check]:
    """Check that this node reaches another one by the name that torchrun tells, and where gloo listens.

    Args:
        about: Its ``host`` name; the ``name`` that torchrun tells; the address of ``gloo``; ``port`` and ``word`` of
            what answers there.
    """
    host, name, gloo = about["host"], about["name"], about["gloo"]
    by_name = _reach(name, about)
    by_gloo = _reach(gloo, about) if gloo is not None else "GLOO_SOCKET_IFNAME names no interface"
    return [
        Check.judge(
            f"{host} by name",
            f"{name}: {by_name or 'reached'}",
            (bool(by_name), Status.FAIL, f"torchrun --local-addr=ADDRESS on {host}, and here too"),
        ),
        Check.judge(
            f"{host} by gloo",
            f"{gloo}: {by_gloo or 'reached'}",
            (bool(by_gloo), Status.FAIL, f"GLOO_SOCKET_IFNAME on {host}: an interface of this network; no firewall"),
        ),
    ]


def _reach(name: str, about: Mapping[str, Any]) -> str:
    """Reason why ``name`` does not lead to the node; empty if it does."""
    try:
        address = with_timeout(_REACHED_WITHIN, lambda: socket.gethostbyname(name))
        with socket.create_connection((address, about["port"]), _REACHED_WITHIN) as connection:
            answer = connection.recv(100).decode(errors="replace")
    except OSError as error:
        return error.strerror or str(error)
    return "" if answer == about["word"] else f"{address} leads to another node"


@contextlib.contextmanager
def _probe() -> Iterator[tuple[int, str]]:
    """A port of all interfaces that answers with a word, as long as the checks last."""
    word = secrets.token_hex()
    with socket.create_server(("", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(word.encode())

        threading.Thread(target=answer, name="probe", daemon=True).start()
        yield listener.getsockname()[1], word


def _await(store: Store, count: int, kind: str, seconds: float) -> dict[int, Any]:
    """Values of the keys ``kind/0`` to ``kind/count - 1`` that are there within ``seconds``."""
    deadline = time.monotonic() + seconds
    try:
        while not store.check([f"{kind}/{i}" for i in range(count)]) and time.monotonic() < deadline:
            time.sleep(_POLL)
        return {i: json.loads(store.get(f"{kind}/{i}")) for i in range(count) if store.check([f"{kind}/{i}"])}
    except RuntimeError:  # the node that hosts the store has ended
        return {}
