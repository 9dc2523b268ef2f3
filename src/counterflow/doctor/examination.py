"""All ranks together: they meet, each node is looked at, then neighbours measure their edges one after the other.

Rank 0 conducts, by notes that need no rank but their reader and their writer: whoever is lost or silent costs its own
lines of the table, and a wait that ends.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from counterflow.doctor.check import Check, Status
from counterflow.doctor.clock import Offset, wall_clocks
from counterflow.doctor.edges import broken_edge, edge
from counterflow.doctor.node import look
from counterflow.doctor.notes import Notes
from counterflow.doctor.pingpong import Amount, Measured, PairError, measure
from counterflow.doctor.place import Place
from counterflow.doctor.software import same_versions, versions
from counterflow.topology import Topology
from counterflow.transport import ChannelError, Communicator

_GRACE = 2.0
"""Seconds between ranks that do the same."""
_LOOK = 5.0
"""The same, where one of them waits for a disk or a name."""
_END = -1


@dataclass(frozen=True)
class Plan:
    """What to look at, and how long."""

    run_dir: Path
    amount: Amount
    timeout: float
    """Seconds of any wait for another rank."""
    ends: float
    """A time of the monotonic clock, after which no measurement begins."""


def examine(notes: Notes, meet: Callable[[], Communicator], place: Place, plan: Plan) -> list[Check]:
    """All checks on rank 0, none on the others, which return when rank 0 has no more use of them.

    ``meet`` makes one world of the ranks, which stays open: groups of lost ranks cannot be closed.
    """
    notes.post(f"here/{place.rank}", {"host": place.host, "looks": place.local_rank == 0, "versions": versions()})
    comm, reason = None, ""
    try:
        comm = meet()
        comm.open_edges(Topology(place.size, place.size), "gloo", torch.device("cpu"))
        comm.watch.explain = lambda: ""  # the table says how the other ranks are
    except (ChannelError, RuntimeError) as error:
        comm, reason = None, _reason(error, place.rank)
    notes.post(f"met/{place.rank}", reason)
    if place.local_rank == 0:
        notes.post(f"node/{place.rank}", [asdict(check) for check in look(place, plan.run_dir)])
    if place.rank == 0:
        return _conduct(notes, comm, place, plan)
    _assist(notes, comm, place.rank, plan)
    return []


def _reason(error: Exception, rank: int) -> str:
    """The first line of what the transport or torch says, without the source file that torch puts into it."""
    return re.sub(r"\[[^]]*\.cc:\d+\] ", "", str(error).strip().splitlines()[0]).removeprefix(f"rank {rank}: ")


def _assist(notes: Notes, comm: Communicator | None, rank: int, plan: Plan) -> None:
    """Measure when told to. Nothing of rank 0, or of the store that it may hold, is the end as well."""
    until = plan.ends + plan.timeout + _LOOK
    try:
        while (lower := notes.take(f"go/{rank}", until)) is not None and lower != _END and comm is not None:
            notes.post(f"done {lower}/{rank}", _measured(comm, lower, plan.amount))
        notes.post(f"left/{rank}", True)
    except RuntimeError:
        return


def _measured(comm: Communicator, lower: int, amount: Amount) -> dict[str, Any]:
    try:
        return measure(comm, lower, amount).note()
    except PairError as error:
        return {"error": str(error)}


def _conduct(notes: Notes, comm: Communicator | None, place: Place, plan: Plan) -> list[Check]:
    here = notes.take_all("here", list(range(place.size)), _GRACE)
    met = notes.take_all("met", list(here), _GRACE)
    nodes = notes.take_all("node", [rank for rank, note in here.items() if note["looks"]], _LOOK)
    checks = [same_versions({rank: note["versions"] for rank, note in here.items()})]
    checks += _of_nodes({here[rank]["host"]: note for rank, note in nodes.items()})
    checks += [
        Check(f"rank {rank}", Status.FAIL, "gave no sign of itself", "see whether it was started, and what it printed")
        for rank in range(place.size)
        if rank not in here or rank not in met or (here[rank]["looks"] and rank not in nodes)
    ]
    checks.append(meeting(place.size, met))
    if comm is not None and checks[-1].status is Status.OK:
        checks += _edges(notes, comm, plan)
    _dismiss(notes, list(here))
    return checks


def _of_nodes(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Check]:
    """The checks of every node, which have its name where there are several."""
    return [
        Check(f"{host} {note['name']}" if len(found) > 1 else note["name"], Status(note["status"]), *texts)
        for host, notes in found.items()
        for note in notes
        for texts in [(note["found"], note["advice"])]
    ]


def meeting(size: int, met: Mapping[int, str]) -> Check:
    """``met``: why each rank that said anything has no process groups; nothing if it has."""
    failed = {rank: reason for rank, reason in met.items() if reason}
    if not failed and len(met) == size:
        return Check("meeting", Status.OK, f"{size} ranks have a process group for each of {2 * (size - 1)} edges")
    ranks = {reason: [str(rank) for rank in failed if failed[rank] == reason] for reason in failed.values()}
    reasons = "; ".join(f"rank {', '.join(who)}: {reason}" for reason, who in ranks.items())
    return Check(
        "meeting",
        Status.FAIL,
        f"{len(met) - len(failed)} of {size} ranks met{f': {reasons}' if reasons else ''}",
        "see the lines above; GLOO_SOCKET_IFNAME has to name an interface that all nodes reach, and no firewall",
    )


def _edges(notes: Notes, comm: Communicator, plan: Plan) -> list[Check]:
    """One pair of neighbours after the other, so that none disturbs another."""
    checks: list[Check] = []
    offsets: list[Offset] = []
    for lower in range(comm.size - 1):
        if time.monotonic() > plan.ends:
            found = f"{lower} of {comm.size - 1} pairs of neighbours were measured in time"
            return [*checks, Check("edges", Status.WARN, found, "--quick, or fewer ranks")]
        ends = [lower, lower + 1]
        for rank in set(ends) - {comm.rank}:
            notes.post(f"go/{rank}", lower)
        if comm.rank in ends:
            notes.post(f"done {lower}/{comm.rank}", _measured(comm, lower, plan.amount))
        answers = notes.take_all(f"done {lower}", ends, plan.timeout + _GRACE)
        missing = [f"rank {rank} says nothing" for rank in ends if rank not in answers]
        broken = [answer["error"] for answer in answers.values() if "error" in answer] + missing
        if broken:
            checks.append(broken_edge(lower, broken))
            continue
        below, above = (Measured.read(answers[rank]) for rank in ends)
        checks += [edge(lower, lower + 1, below, above), edge(lower + 1, lower, above, below)]
        offsets.append(below.ahead)
    if len(offsets) == comm.size - 1 > 0:
        checks.append(wall_clocks(offsets))
    return checks


def _dismiss(notes: Notes, ranks: Sequence[int]) -> None:
    """Let the others end before the store does."""
    others = [rank for rank in ranks if rank > 0]
    for rank in others:
        notes.post(f"go/{rank}", _END)
    notes.take_all("left", others, _GRACE)
