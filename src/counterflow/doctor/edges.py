"""What two neighbours measured, as checks."""

from collections.abc import Sequence

from counterflow.doctor.check import Check, Status
from counterflow.doctor.pingpong import Measured

SLOW = 0.01
"""Seconds that a small message may take."""
NARROW = 1e7
"""Bytes per second."""


def edge(source: int, destination: int, sent: Measured, received: Measured) -> Check:
    """From what the source found out by sending, and the destination by receiving."""
    found = (
        f"64 B take {1e6 * sent.median:.0f} us (median), {1e6 * sent.late:.0f} us (99th percentile); "
        f"1 MiB at {received.bandwidth / 1e9:.2f} GB/s"
    )
    name = f"edge {source}->{destination}"
    if sent.median > SLOW or received.bandwidth < NARROW:
        advice = "other programs on the cores, or a faster interface: GLOO_SOCKET_IFNAME"
        return Check(name, Status.WARN, found, advice)
    return Check(name, Status.OK, found)


def broken_edge(lower: int, reasons: Sequence[str]) -> Check:
    """Both directions between ``lower`` and the rank above it."""
    return Check(
        f"edge {lower}<->{lower + 1}",
        Status.FAIL,
        " / ".join(reasons),
        f"see whether ranks {lower} and {lower + 1} live, and that no firewall is between them",
    )
