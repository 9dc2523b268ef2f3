"""What a channel promises, whatever carries it."""

import re
import threading
import time
from collections.abc import Callable
from typing import Protocol

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


class Watch:
    """The waits of one process: they all end when one channel of the process fails, or after ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._condition = threading.Condition()
        self._failure: ChannelError | None = None
        self._lost: int | None = None
        self._waiting: tuple[str, float] | None = None
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

    def lose(self, rank: int) -> None:
        """Wake every wait because ``rank`` is gone; each says what it waited for."""
        with self:
            self._lost = rank if self._lost is None else self._lost

    def wait(self, ready: Callable[[], object], what: str) -> float:
        """Wait until ``ready()``, called under the lock; ``what`` says what for. Returns the seconds waited."""
        start = time.perf_counter()
        with self._condition:
            if self._failure is None and self._lost is None and ready():
                return 0.0
            self._waiting = what, start
            self._condition.wait_for(
                lambda: self._failure is not None or self._lost is not None or ready(), self.timeout
            )
            if self._failure is not None:
                raise self._failure
            if self._lost is not None:
                raise ChannelError(f"{what}: lost rank {self._lost}")
            came = ready()
        if not came:
            raise ChannelError(f"{what}: nothing for {self.timeout:g} s (engine.timeout){self.explain()}")
        self._waiting = None
        return time.perf_counter() - start

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
