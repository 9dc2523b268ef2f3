"""Checks made of the measurements of edges."""

import pytest

from counterflow.doctor.check import Status
from counterflow.doctor.link_benchmark import ClockOffset, LinkStats, check_edge, check_wall_clocks

STEADY = LinkStats(5e-5, 2e-4, 1e9, ClockOffset(0.0, 1e-4))


@pytest.mark.parametrize(
    ("sent", "received", "status"),
    [
        (STEADY, STEADY, "ok"),
        (LinkStats(0.02, 0.03, 1e9, STEADY.offset), STEADY, "warn"),
        (STEADY, LinkStats(5e-5, 2e-4, 5e6, STEADY.offset), "warn"),
        # One late message. The source's own arrivals belong to the other edge.
        (LinkStats(5e-5, 0.5, 1.0, STEADY.offset), STEADY, "ok"),
    ],
)
def test_edges(sent: LinkStats, received: LinkStats, status: str) -> None:
    check = check_edge(3, 2, sent, received)
    assert (check.name, check.status) == ("edge 3->2", status)


def test_the_offset_of_one_round_trip() -> None:
    """Sent at 10, received at 12 by this clock; the other one is 5 s ahead and answers at once, or late."""
    for remote in (15.0, 17.0):
        offset = ClockOffset.from_round_trip(10.0, 12.0, remote)
        assert abs(offset.seconds - 5.0) <= offset.error == 1.0


def test_wall_clocks_that_are_apart() -> None:
    assert check_wall_clocks([ClockOffset(0.0, 0.001)]).status is Status.OK
    # Each step is small, but rank 2 is far from rank 0; rank 3 is back.
    check = check_wall_clocks([ClockOffset(-0.06, 0.001), ClockOffset(-0.06, 0.002), ClockOffset(0.1, 0.004)])
    assert check.status is Status.WARN
    assert check.result == "at most 120.000 ms apart (ranks 2 and 0), +- 3.000 ms"
