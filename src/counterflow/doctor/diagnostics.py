"""Diagnostics of all ranks: they connect, each node is checked, then neighbours measure their edges, pair by pair.

Rank 0 coordinates through the launcher's store, where a message needs no rank but its sender and its receiver. A rank
that is lost or silent costs its own lines of the table, and one bounded wait.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from counterflow.doctor.check import Check, Status
from counterflow.doctor.link_benchmark import (
    QUICK,
    THOROUGH,
    ClockOffset,
    LinkStats,
    SampleCounts,
    check_edge,
    check_wall_clocks,
    measure_link,
)
from counterflow.doctor.machine import check_machine, compare_versions, installed_versions, ranks_by_value
from counterflow.measured_links import MeasuredLink, write_links
from counterflow.rank_info import RankInfo
from counterflow.topology import Topology
from counterflow.transport import ChannelError, Communicator, connect, rendezvous

_GRACE = 2.0
"""Seconds between two ranks that do the same work."""
_MACHINE_GRACE = 5.0
"""The same, if one of them waits for a disk or a name server."""
_POLL = 0.01
"""Seconds between two polls of the store."""


@dataclass(frozen=True)
class DiagnosticsConfig:
    run_dir: Path
    counts: SampleCounts
    timeout: float
    """Seconds of any wait for another rank."""
    deadline: float
    """Time of the monotonic clock after which no measurement starts."""
    links: Path | None = None
    """File for the measured links, which rank 0 writes."""


def check_rank(run_dir: Path, timeout: float, quick: bool, deadline: float, links: Path | None = None) -> list[Check]:
    """Run the diagnostics on one rank of a launcher; return the checks that this rank has to print.

    Args:
        run_dir: Folder of runs, which may not exist yet.
        timeout: Seconds of any wait for another rank.
        quick: Send a fifth of the messages.
        deadline: Time of the monotonic clock after which no measurement starts.
        links: File for the measured links, which rank 0 writes.

    Raises:
        ValueError: The launcher's environment variables are wrong.
    """
    rank_info = RankInfo.from_env()
    between_ranks = Check("edges", Status.OK, "none: there is one rank")
    try:
        store = rendezvous(rank_info, timeout)
    except (RuntimeError, ChannelError, ValueError) as error:
        advice = "check that rank 0 runs, and that MASTER_ADDR and MASTER_PORT lead to it"
        store, between_ranks = None, Check("meeting", Status.FAIL, str(error).strip().splitlines()[0], advice)
    if store is not None:
        config = DiagnosticsConfig(run_dir, QUICK if quick else THOROUGH, timeout, deadline, links)
        connect_ranks = partial(connect, store, rank_info.rank, rank_info.size, timeout=timeout)
        return run_diagnostics(PrefixStore("doctor", store), connect_ranks, rank_info, config)
    if rank_info.local_rank > 0:
        return []
    return [
        compare_versions({rank_info.rank: installed_versions()}),
        *check_machine(rank_info, run_dir),
        between_ranks,
    ]


def run_diagnostics(
    store: Store, connect_ranks: Callable[[], Communicator], rank_info: RankInfo, config: DiagnosticsConfig
) -> list[Check]:
    """Return all checks on rank 0, and none on the other ranks, which return when rank 0 no longer needs them.

    Args:
        store: Carries messages between the ranks; no other keys are in it.
        connect_ranks: Makes the communicator. It stays open, because groups with lost ranks cannot be closed.
        rank_info: This rank.
        config: Extent and time limits.
    """
    rank, checks_node = rank_info.rank, rank_info.local_rank == 0
    about = {"host": rank_info.host, "checks_node": checks_node, "versions": installed_versions()}
    post(store, f"here/{rank}", about)
    reason = ""
    try:
        communicator = connect_ranks()
        communicator.open_edges(Topology(rank_info.size, rank_info.size), "gloo", torch.device("cpu"))
        communicator.watchdog.explain = lambda: ""  # the table shows the state of the other ranks
    except (ChannelError, RuntimeError) as error:
        line = re.sub(r"\[[^]]*\.cc:\d+\] ", "", str(error).strip().splitlines()[0])  # torch names its source file
        communicator, reason = None, line.removeprefix(f"rank {rank}: ")
    post(store, f"met/{rank}", reason)
    if checks_node:
        post(store, f"node/{rank}", [asdict(check) for check in check_machine(rank_info, config.run_dir)])
    if rank == 0:
        return _coordinate(store, communicator, rank_info.size, config)
    _assist(store, communicator, rank, config)
    return []


def post(store: Store, key: str, value: Any) -> None:
    """Post a JSON value, which one other rank takes, once. Raises ``RuntimeError`` when the store is gone."""
    store.set(key, json.dumps(value))


def take(store: Store, key: str, deadline: float) -> Any:
    """Value of ``key``, or ``None`` if there is none by ``deadline``, a time of the monotonic clock.

    Raises ``RuntimeError`` when the store is gone.
    """
    while not store.check([key]):
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL)
    text = store.get(key)
    store.delete_key(key)
    return json.loads(text)


def take_all(store: Store, name: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
    """Values of the keys ``name/rank``, by rank, without those that are not there within ``seconds``."""
    deadline = time.monotonic() + seconds
    values = {rank: take(store, f"{name}/{rank}", deadline) for rank in ranks}
    return {rank: value for rank, value in values.items() if value is not None}


def _assist(store: Store, communicator: Communicator | None, rank: int, config: DiagnosticsConfig) -> None:
    """Measure the edges that rank 0 asks for, until it asks for the end, or is silent, or the store is gone."""
    deadline = config.deadline + config.timeout + _MACHINE_GRACE
    try:
        while (lower := take(store, f"go/{rank}", deadline)) is not None and communicator is not None:
            post(store, f"done {lower}/{rank}", _measure(communicator, lower, config.counts))
        post(store, f"left/{rank}", True)
    except RuntimeError:
        return


def _measure(communicator: Communicator, lower: int, counts: SampleCounts) -> dict[str, Any]:
    try:
        return asdict(measure_link(communicator, lower, counts))
    except ChannelError as error:
        return {"error": str(error)}


def _coordinate(store: Store, communicator: Communicator | None, size: int, config: DiagnosticsConfig) -> list[Check]:
    here = take_all(store, "here", range(size), _GRACE)
    met = take_all(store, "met", here, _GRACE)
    checking = [rank for rank, message in here.items() if message["checks_node"]]
    nodes = take_all(store, "node", checking, _MACHINE_GRACE)
    silent = [rank for rank in range(size) if rank not in met or (rank in checking and rank not in nodes)]
    meeting = check_meeting(size, met)
    checks = [
        compare_versions({rank: message["versions"] for rank, message in here.items()}),
        *_node_checks({here[rank]["host"]: checks for rank, checks in nodes.items()}),
        *(
            Check(f"rank {rank}", Status.FAIL, "did not report", "check that it was started, and read what it printed")
            for rank in silent
        ),
        meeting,
    ]
    if communicator is not None and meeting.status is Status.OK:
        starts = accumulate(here[rank]["checks_node"] for rank in range(size))
        checks += _check_edges(store, communicator, config, [count - 1 for count in starts])
    # The store may live in this process: it ends after the other ranks.
    others = [rank for rank in here if rank > 0]
    for rank in others:
        post(store, f"go/{rank}", None)
    take_all(store, "left", others, _GRACE)
    return checks


def _node_checks(nodes: Mapping[str, Sequence[Mapping[str, str]]]) -> list[Check]:
    """Checks of every node, by host, with the host in their names if there are several."""
    return [
        Check(
            f"{host} {check['name']}" if len(nodes) > 1 else check["name"],
            Status(check["status"]),
            check["result"],
            check["advice"],
        )
        for host, checks in nodes.items()
        for check in checks
    ]


def check_meeting(size: int, met: Mapping[int, str]) -> Check:
    """Check that all ranks have process groups.

    ``met`` holds, for each rank that reported, the reason why it has none, or an empty string if it has.
    """
    failed = {rank: reason for rank, reason in met.items() if reason}
    if not failed and len(met) == size:
        return Check("meeting", Status.OK, f"{size} ranks have a process group for each of {2 * (size - 1)} edges")
    reasons = "; ".join(f"{ranks}: {reason}" for reason, ranks in ranks_by_value(failed).items())
    result = f"{len(met) - len(failed)} of {size} ranks met{f': {reasons}' if reasons else ''}"
    advice = "see the lines above; GLOO_SOCKET_IFNAME has to name an interface that all nodes reach, and no firewall"
    return Check("meeting", Status.FAIL, result, advice)


def _check_edges(
    store: Store, communicator: Communicator, config: DiagnosticsConfig, nodes: Sequence[int]
) -> list[Check]:
    """Measure one pair of neighbours after the other, so that none disturbs another; ``nodes`` are those of ranks."""
    checks: list[Check] = []
    links: list[MeasuredLink] = []
    offsets: list[ClockOffset] = []
    pairs = communicator.size - 1
    for lower in range(pairs):
        if time.monotonic() > config.deadline:
            result = f"{lower} of {pairs} pairs of neighbours were measured in time"
            checks.append(Check("edges", Status.WARN, result, "--quick, or fewer ranks"))
            break
        ends = [lower, lower + 1]
        for rank in set(ends) - {communicator.rank}:
            post(store, f"go/{rank}", lower)
        if communicator.rank in ends:
            post(store, f"done {lower}/{communicator.rank}", _measure(communicator, lower, config.counts))
        answers = take_all(store, f"done {lower}", ends, config.timeout + _GRACE)
        missing = [f"rank {rank} did not answer" for rank in ends if rank not in answers]
        broken = [answer["error"] for answer in answers.values() if "error" in answer] + missing
        if broken:
            advice = f"check that ranks {lower} and {lower + 1} are running, and that no firewall is between them"
            checks.append(Check(f"edge {lower}<->{lower + 1}", Status.FAIL, " / ".join(broken), advice))
        else:
            below, above = (LinkStats.from_json(answers[rank]) for rank in ends)
            checks += [check_edge(lower, lower + 1, below, above), check_edge(lower + 1, lower, above, below)]
            offsets.append(below.offset)
            links += [
                MeasuredLink(
                    source=source,
                    destination=destination,
                    source_node=nodes[source],
                    destination_node=nodes[destination],
                    latency=sent.median,
                    bandwidth=received.bandwidth,
                )
                for source, destination, sent, received in (
                    (lower, lower + 1, below, above),
                    (lower + 1, lower, above, below),
                )
            ]
    if len(offsets) == pairs > 0:
        checks.append(check_wall_clocks(offsets))
    return checks if config.links is None else [*checks, _write(config.links, links, whole=len(offsets) == pairs > 0)]


def _write(path: Path, links: Sequence[MeasuredLink], whole: bool) -> Check:
    if not whole:
        return Check("links", Status.WARN, f"{path} is not written: an edge was not measured", "see the lines above")
    try:
        write_links(path, links)
    except OSError as error:
        return Check("links", Status.FAIL, f"{path}: {error.strerror}", "name a file that can be written: --links")
    return Check("links", Status.OK, f"{len(links)} in {path}, for `counterflow plan machines.links={path}`")
