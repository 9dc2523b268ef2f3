"""Published texts of one rank for all ranks: on a single process, and the ways in which a wait for one ends."""

import threading

import pytest

from counterflow.transport import ChannelError, Communicator, connect


@pytest.fixture
def comm() -> Communicator:
    return connect(None, 0, 1, timeout=0.2)


def nothing() -> None:
    """Nothing has gone wrong."""


def test_it_may_come_later_and_stays(comm: Communicator) -> None:
    comm.publish("before", "1")
    assert [comm.await_published("before", nothing) for _ in range(2)] == ["1", "1"]
    threading.Timer(0.1, comm.publish, ["later", "2"]).start()
    assert comm.await_published("later", nothing) == "2"


def test_a_wait_has_an_end(comm: Communicator) -> None:
    message = r"^rank 0: waiting for the decision: nothing for 0.2 s \(engine.timeout\)$"
    with pytest.raises(ChannelError, match=message):
        comm.await_published("the decision", nothing)


def test_a_lost_rank_ends_it(comm: Communicator) -> None:
    comm.watchdog.lose("lost rank 2")
    with pytest.raises(ChannelError, match=r"^rank 0: waiting for the decision: lost rank 2$"):
        comm.await_published("the decision", nothing)


def test_an_error_of_rank_0_ends_it(comm: Communicator) -> None:
    def check() -> None:
        raise LookupError("the callback failed")

    with pytest.raises(LookupError):
        comm.await_published("the decision", check)
