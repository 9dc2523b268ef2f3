"""Errors of sockets under ``engine.recovery=rank``: a process that was killed is awaited, a machine is not."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from counterflow.recovery import replaying_channels
from counterflow.recovery.replaying_channels import _ReplayingEnd
from counterflow.transport import ChannelError
from counterflow.transport.control import Watchdog
from counterflow.transport.keepalive import SILENCE

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
CLOSED = ConnectionError("closed")
NO_ANSWER = TimeoutError("timed out")
NO_WAY = OSError(errno.EHOSTUNREACH, "No route to host")
SILENT = TimeoutError(errno.ETIMEDOUT, "Connection timed out")


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replaying_channels, "time", clock)
    return clock


@pytest.fixture
def end() -> Any:
    return _ReplayingEnd(SimpleNamespace(watchdog=Watchdog(1.0), peer=3))  # type: ignore[arg-type]


def is_lost(end: Any) -> bool:
    try:
        end.endpoint.watchdog.check("waiting")
    except ChannelError as error:
        return (
            str(error) == f"waiting: lost rank 3 (no answer for {SILENCE:g} s: its machine is down, or the link to it)"
        )
    return False


@pytest.mark.parametrize("error", [REFUSED, CLOSED])
def test_a_process_that_is_replaced_is_awaited(end: Any, clock: Clock, error: OSError) -> None:
    for _ in range(100):
        end._judge(error)
        clock.now += 10
    assert not is_lost(end)


@pytest.mark.parametrize("error", [NO_ANSWER, NO_WAY])
def test_a_machine_that_cannot_be_reached_for_long_is_lost(end: Any, clock: Clock, error: OSError) -> None:
    end._judge(error)
    clock.now += SILENCE - 1
    end._judge(error)
    assert not is_lost(end)
    clock.now += 2
    end._judge(error)
    assert is_lost(end)


def test_one_that_refuses_meanwhile_was_reached(end: Any, clock: Clock) -> None:
    for error in (NO_WAY, REFUSED, NO_WAY):
        end._judge(error)
        clock.now += SILENCE - 1
    assert not is_lost(end)


def test_the_kernel_has_waited_already(end: Any, clock: Clock) -> None:
    end._judge(SILENT)
    assert is_lost(end)
