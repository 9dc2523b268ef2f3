"""Watchdog: the waits of one process."""

import threading
import time

import pytest

from counterflow.transport import ChannelError
from counterflow.transport.control import Watchdog


class Waiter(threading.Thread):
    """Waits in a thread of its own; ``result`` is the seconds that `Watchdog.wait` returned, or its error."""

    def __init__(self, watchdog: Watchdog, ready: object, what: str = "a message") -> None:
        super().__init__(daemon=True)
        self.result: float | ChannelError | None = None
        self._wait = (watchdog, ready, what)
        self.start()

    def run(self) -> None:
        watchdog, ready, what = self._wait
        try:
            self.result = watchdog.wait(ready, what)  # type: ignore[arg-type]
        except ChannelError as error:
            self.result = error

    def end(self) -> float | ChannelError | None:
        self.join(10)
        assert not self.is_alive(), "it still waits"
        return self.result


def test_no_wait_for_what_is_ready() -> None:
    assert Watchdog(10).wait(lambda: True, "nothing") < 5
    assert Watchdog(0).wait(lambda: [0], "nothing") < 5


def test_a_wait_ends_when_another_thread_makes_it_ready() -> None:
    watchdog = Watchdog(30)
    box: list[int] = []
    waiter = Waiter(watchdog, lambda: box)
    time.sleep(0.2)
    assert waiter.is_alive()
    with watchdog:
        box.append(1)
    waited = waiter.end()
    assert isinstance(waited, float)
    assert 0.1 < waited < 10


def test_a_failure_wakes_all_waits() -> None:
    watchdog = Watchdog(30)
    waiters = [Waiter(watchdog, lambda: False, f"channel {i}") for i in range(5)]
    time.sleep(0.1)
    error = ChannelError("lost rank 7")
    watchdog.fail(error)
    assert [waiter.end() for waiter in waiters] == [error] * 5


def test_a_failure_ends_later_waits_too() -> None:
    watchdog = Watchdog(30)
    watchdog.fail(ChannelError("lost rank 7"))
    with pytest.raises(ChannelError, match=r"^lost rank 7$"):
        watchdog.wait(lambda: True, "anything")


def test_the_first_failure_counts() -> None:
    watchdog = Watchdog(30)
    watchdog.fail(ChannelError("lost rank 7"))
    watchdog.fail(ChannelError("lost rank 8, because of 7"))
    with pytest.raises(ChannelError, match="rank 7"):
        watchdog.wait(lambda: False, "anything")


def test_timeout_says_what_and_how_long() -> None:
    start = time.monotonic()
    with pytest.raises(ChannelError, match=r"^rank 1: room for batch 3: nothing for 0\.25 s \(engine\.timeout\)$"):
        Watchdog(0.25).wait(lambda: False, "rank 1: room for batch 3")
    assert 0.25 <= time.monotonic() - start < 5


def test_a_timeout_is_for_one_wait_only() -> None:
    """Waits do not add up, and a timeout of one does not end the others."""
    watchdog = Watchdog(0.4)
    box: list[int] = []
    waiter = Waiter(watchdog, lambda: False)
    assert isinstance(waiter.end(), ChannelError)
    other = Waiter(watchdog, lambda: box)
    time.sleep(0.1)
    with watchdog:
        box.append(1)
    assert isinstance(other.end(), float)
