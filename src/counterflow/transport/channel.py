"""What a channel promises, whatever carries it."""

import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from counterflow.message import Tag

Payload = tuple[Tensor, ...]


class ChannelError(Exception):
    """A channel that cannot go on: a lost rank, a wait that ran out, or a message that is not what was agreed.

    The text names rank, edge and batch.
    """


def gloo_reason(error: Exception) -> str:
    """What happened, of an error of gloo, which puts its source file before it and advice behind it."""
    return " ".join(re.sub(r"^\[\S+\] ", "", str(error).strip()).split(". ")[0].splitlines())


class Sender(Protocol):
    """The end of a FIFO that messages enter."""

    def send(self, tag: Tag, tensors: Payload) -> None:
        """Hand over ``tensors``, which stay as they are from then on. Waits while the channel is full."""

    def close(self) -> None:
        """Return when everything that was sent has left this process."""


class Receiver(Protocol):
    """The end of a FIFO that messages leave, each taken exactly once and in order."""

    def receive(self, tag: Tag) -> Payload:
        """The next message, which must be ``tag``; its tensors are valid until `release`. Waits while there is none."""

    def release(self) -> None:
        """Give back the oldest message that was received and not released."""

    def close(self) -> None:
        """Return when nothing of this channel is under way any more."""


class Watchdog:
    """The waits of one process: they all end when one channel of the process fails, or after ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._condition = threading.Condition()
        self._failure: ChannelError | None = None
        self._lost: int | None = None
        self._waiting: tuple[str, float] | None = None
        self._inboxes: list[queue.SimpleQueue[Any]] = []
        self.explain: Callable[[], str] = lambda: ""
        """What else there is to say about a wait that ran out; may take seconds."""

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *_: object) -> None:
        self._condition.notify_all()
        self._condition.release()

    def fail(self, error: ChannelError) -> None:
        """Wake every wait with ``error``; only the first failure counts, others follow from it."""
        with self:
            self._failure = self._failure or error
        self._wake()

    def lose(self, rank: int) -> None:
        """Wake every wait because ``rank`` is gone; each says what it waited for."""
        with self:
            self._lost = rank if self._lost is None else self._lost
        self._wake()

    def _wake(self) -> None:
        for inbox in list(self._inboxes):
            inbox.put(None)

    def wait(self, ready: Callable[[], object], what: str) -> float:
        """Wait until ``ready()``, called under the lock; ``what`` says what for. Returns the seconds waited."""
        start = time.perf_counter()
        with self._condition:
            self._waiting = what, start
            self._condition.wait_for(
                lambda: self._failure is not None or self._lost is not None or ready(), self.timeout
            )
            self._check(what)
            came = ready()
        if not came:
            raise self._overdue(what)
        self._waiting = None
        return time.perf_counter() - start

    def inbox(self) -> "queue.SimpleQueue[Any]":
        """A queue that another thread fills for `take`."""
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inboxes.append(inbox)
        return inbox

    def take(self, inbox: "queue.SimpleQueue[Any]", what: Callable[[], str]) -> Any:
        """The next item of ``inbox``, after a wait like `wait`'s: a tenth of its time from one thread to another."""
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
                raise self._overdue(text) from None
            if item is not None:
                self._waiting = None
        if item is None:
            self._check(what())
        return item

    def _check(self, what: str) -> None:
        if self._failure is not None:
            raise self._failure
        if self._lost is not None:
            raise ChannelError(f"{what}: lost rank {self._lost}")

    def _overdue(self, what: str) -> ChannelError:
        return ChannelError(f"{what}: nothing for {self.timeout:g} s (engine.timeout){self.explain()}")

    def rest(self, ready: Callable[[], object]) -> bool:
        """Wait until ``ready()``, without a limit, as threads beside the program do; False if the process fails."""
        with self._condition:
            self._condition.wait_for(lambda: self._failure is not None or ready())
            return self._failure is None

    def state(self) -> str:
        """What the process waits for now."""
        waiting = self._waiting
        if waiting is None:
            return "computes"
        what, since = waiting
        return f"waits since {time.perf_counter() - since:.1f} s: {what}"
