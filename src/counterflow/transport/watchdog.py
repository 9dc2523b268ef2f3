"""Watchdog of all waits of one process."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from counterflow.transport.channel import ChannelError


class Watchdog:
    """Ends every wait of the process when one of its channels fails, and each wait after ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._condition = threading.Condition()
        self._failure: ChannelError | None = None
        self._lost: int | None = None
        self._waiting: tuple[str, float] | None = None
        self._inboxes: list[queue.SimpleQueue[Any]] = []
        self.explain: Callable[[], str] = lambda: ""
        """Text that is appended to the error of a wait that timed out; the call may take seconds."""
        self.find_cause: Callable[[ChannelError], ChannelError] = lambda error: error
        """Replaces the error for a lost rank if that rank ended because of something worse."""

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *_: object) -> None:
        self._condition.notify_all()
        self._condition.release()

    def fail(self, error: ChannelError) -> None:
        """End all waits, now and later, with ``error``; only the first failure counts, as others follow from it."""
        error = self._failure or self.find_cause(error)
        with self:
            self._failure = self._failure or error
        self._wake()

    def lose(self, rank: int) -> None:
        """End all waits, now and later, because ``rank`` is gone; the error of each names what it waited for."""
        with self:
            self._lost = rank if self._lost is None else self._lost
        self._wake()

    def _wake(self) -> None:
        for inbox in list(self._inboxes):
            inbox.put(None)

    def raise_failure(self) -> None:
        """Raise the error of `fail`, if there is one."""
        if self._failure is not None:
            raise self._failure

    def _check(self, what: str) -> None:
        self.raise_failure()
        if self._lost is not None:
            raise self.find_cause(ChannelError(f"{what}: lost rank {self._lost}"))

    def wait(self, ready: Callable[[], object], what: str) -> float:
        """Wait until ``ready()``, which is called under the lock; ``what`` names it in errors.

        Returns:
            The seconds waited.
        """
        start = time.perf_counter()
        with self._condition:
            self._waiting = what, start
            self._condition.wait_for(
                lambda: self._failure is not None or self._lost is not None or ready(), self.timeout
            )
            self._check(what)
            is_ready = ready()
        if not is_ready:
            raise self._timed_out(what)
        self._waiting = None
        return time.perf_counter() - start

    def inbox(self) -> "queue.SimpleQueue[Any]":
        """A queue that another thread fills for `take`."""
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inboxes.append(inbox)
        return inbox

    def take(self, inbox: "queue.SimpleQueue[Any]", what: Callable[[], str]) -> Any:
        """Wait for the next item of ``inbox``; ten times as fast as `wait` from one thread to another."""
        if self._failure is not None or self._lost is not None:
            self._check(what())
        try:
            item = inbox.get_nowait()
        except queue.Empty:
            text = what()
            self._waiting = text, time.perf_counter()
            try:
                item = inbox.get(timeout=self.timeout)
            except queue.Empty:
                raise self._timed_out(text) from None
            if item is not None:
                self._waiting = None
        if item is None:
            self._check(what())
        return item

    def _timed_out(self, what: str) -> ChannelError:
        return ChannelError(f"{what}: nothing for {self.timeout:g} s (engine.timeout){self.explain()}")

    def wait_in_background(self, ready: Callable[[], object]) -> bool:
        """Wait until ``ready()``, without a limit, on a thread that serves a channel; False if the process fails."""
        with self._condition:
            self._condition.wait_for(lambda: self._failure is not None or ready())
            return self._failure is None

    def state(self) -> str:
        """The wait of this process, in words for a report."""
        waiting = self._waiting
        if waiting is None:
            return "computes"
        what, since = waiting
        return f"waits since {time.perf_counter() - since:.1f} s: {what}"
