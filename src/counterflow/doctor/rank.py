"""One rank of an examination, in the environment that a launcher made."""

import os
from functools import partial
from pathlib import Path

from counterflow.doctor.check import Check, Status
from counterflow.doctor.examination import Plan, examine
from counterflow.doctor.node import look
from counterflow.doctor.notes import Notes
from counterflow.doctor.pingpong import QUICK, THOROUGH
from counterflow.doctor.place import Place
from counterflow.doctor.software import same_versions, versions
from counterflow.transport import ChannelError, connect, rendezvous


def check_rank(run_dir: Path, timeout: float, quick: bool, ends: float) -> list[Check]:
    """What this rank has to print; `Plan` says what ``timeout`` and ``ends`` are.

    Raises ``ValueError`` where the environment is not one that a launcher makes.
    """
    place = Place.of(os.environ)
    reason = ""
    try:
        store, rank, size = rendezvous(timeout)
    except (RuntimeError, ChannelError, ValueError) as error:
        store, reason = None, str(error).strip().splitlines()[0]
    if store is not None:
        plan = Plan(run_dir, QUICK if quick else THOROUGH, timeout, ends)
        return examine(Notes(store), partial(connect, store, rank, size, timeout=timeout), place, plan)
    if place.local_rank > 0:
        return []
    alone = [same_versions({place.rank: versions()}), *look(place, run_dir)]
    if not reason:
        return [*alone, Check("edges", Status.OK, "none: there is one rank")]
    advice = "see whether rank 0 runs, and MASTER_ADDR and MASTER_PORT lead to it"
    return [*alone, Check("meeting", Status.FAIL, reason, advice)]
