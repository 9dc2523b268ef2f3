"""Strangers on the ports of a running job: it goes on, or ends cleanly, whatever they send and when.

A stranger reaches every port and knows nothing else. None changes a bit of a run that trains. While ranks meet, a
stranger takes a rank's place if its first bytes are gloo's number of a connection that is still to come; this ends the
run.
"""

import os
import signal
import struct
from contextlib import ExitStack

import pytest

from tests.helpers.ports import listening
from tests.helpers.strangers import STRANGERS, WHEN, HostileJob, allowed, send, undisturbed_fingerprint, visit


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return undisturbed_fingerprint()


def test_strangers_of_the_rendezvous_change_nothing(undisturbed: str) -> None:
    """All of them, one after the other."""
    with HostileJob() as job:
        WHEN["rendezvous"](job, list(STRANGERS), None)
        assert job.fingerprint() in allowed("rendezvous", undisturbed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stays", [False, True], ids=["goes", "stays"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", STRANGERS)
def test_each_stranger_changes_nothing(name: str, when: str, stays: bool, undisturbed: str) -> None:
    with ExitStack() as stay, HostileJob() as job:
        WHEN[when](job, [name], stay if stays else None)
        assert job.fingerprint() in allowed(when, undisturbed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stranger_in_a_ranks_place_ends_the_run(victim: int, undisturbed: str) -> None:
    """Gloo identifies a connection by a small number that comes first. A stranger that sends all numbers before the
    other rank is taken for it; the messages that this rank then waits for never come.
    """
    with ExitStack() as stay, HostileJob("engine.timeout=5") as job:
        other, mine = job.run.pids[1 - victim], job.run.pids[victim]
        while len(listening(mine)) < (2 if victim == 0 else 1):
            assert job.run.running()
        os.kill(other, signal.SIGSTOP)
        for address in listening(mine):
            for number in range(32):
                visit(address, lambda connection: send(connection, struct.pack("<Q", number)), stay)  # noqa: B023
        os.kill(other, signal.SIGCONT)
        assert job.fingerprint() in (undisturbed, None)  # the first where the other rank had been there already
