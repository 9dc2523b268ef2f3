"""Control of the waits of one process: their watchdog, the agreement on the last batch, and the control thread."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from counterflow.transport.channel import ChannelError
from counterflow.transport.rendezvous import LauncherStore, SilentStoreError

_INTERVAL = 0.2
"""Seconds between looks at the store."""

_ANSWERS_WITHIN = 2.0
"""Seconds in which a rank that is alive answers."""

LOSS_GRACE = 1.0
"""Seconds in which a channel may notice a lost process first: its error names the batch."""


class Watchdog:
    """Ends every wait of the process when one of its channels fails, and each wait after ``timeout`` seconds."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._condition = threading.Condition()
        self._failure: ChannelError | None = None
        self._lost = ""
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
        with self:
            self._failure = self._failure or error
        self._wake()

    def lose(self, what: str) -> None:
        """End all waits, now and later, because of ``what``; the error of each names what it waited for."""
        with self:
            self._lost = self._lost or what
        self._wake()

    def _wake(self) -> None:
        for inbox in list(self._inboxes):
            inbox.put(None)

    def raise_failure(self) -> None:
        """Raise the error of `fail`, if there is one."""
        if self._failure is not None:
            raise self._failure

    def check(self, what: str) -> None:
        """Raise the error that ends the wait for ``what``, if there is one."""
        self.raise_failure()
        if self._lost:
            raise self.find_cause(ChannelError(f"{what}: {self._lost}"))

    def wait(self, ready: Callable[[], object], what: str) -> float:
        """Wait until ``ready()``, which is called under the lock; ``what`` names it in errors.

        Returns:
            The seconds waited.
        """
        start = time.perf_counter()
        with self._condition:
            self._waiting = what, start
            is_ready = self._condition.wait_for(
                lambda: self._failure is not None or self._lost or ready(), self.timeout
            )
            self.check(what)
        if not is_ready:
            raise self.timed_out(what)
        self._waiting = None
        return time.perf_counter() - start

    def inbox(self) -> "queue.SimpleQueue[Any]":
        """A queue that another thread fills for `take`."""
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inboxes.append(inbox)
        return inbox

    def take(self, inbox: "queue.SimpleQueue[Any]", what: Callable[[], str]) -> Any:
        """Wait for the next item of ``inbox``; ten times as fast as `wait` from one thread to another."""
        if self._failure is not None or self._lost:
            self.check(what())
        try:
            item = inbox.get_nowait()
        except queue.Empty:
            text = what()
            self._waiting = text, time.perf_counter()
            try:
                item = inbox.get(timeout=self.timeout)
            except queue.Empty:
                raise self.timed_out(text) from None
            if item is not None:
                self._waiting = None
        if item is None:
            self.check(what())
        return item

    def timed_out(self, what: str) -> ChannelError:
        """The error of a wait that took too long; ``what`` names it."""
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


class StopConsensus:
    """Agreement of all ranks on their last batch, although no rank knows how far the others are.

    After a request, no rank starts another batch before all have said which one they are in. The highest is the last.
    Everything that a block needs to finish that batch comes from blocks that finish it too, so no wait is in vain.
    """

    def __init__(self, rank: int, watchdog: Watchdog, on_stop: Callable[[int], None]) -> None:
        """``on_stop`` is called once with the signal of the first request, on any thread."""
        self._rank = rank
        self._watchdog = watchdog
        self._on_stop = on_stop
        self._lock = threading.Lock()
        self._started = 0
        self.possible = False
        """True once the run has started, so that there is something to stop."""
        self.last: int | None = None
        """The batch after which all ranks stop, once agreed; the last of the run if it was too late to stop."""
        self.signal: int | None = None
        """The signal that one of the ranks caught; None if none did."""

    def start(self, n: int) -> None:
        """Note that this rank starts batch ``n``."""
        with self._lock:
            self._started = n
            self.possible = True

    def should_stop_after(self, n: int) -> bool:
        """True if the run stops after batch ``n``, which this rank has finished. Raises `ChannelError`."""
        self._watchdog.raise_failure()
        with self._lock:
            if self.signal is None:
                self._started = n + 1
                return False
        self._watchdog.wait(
            lambda: self.last is not None, f"rank {self._rank}: all ranks to say which batch they are in"
        )
        assert self.last is not None
        return n >= self.last

    def request(self, signal: int) -> int:
        """Stop at the next chance. Returns the batch that this rank is in."""
        with self._lock:
            first, self.signal = self.signal is None, self.signal or signal
            started = self._started
        if first:
            self._on_stop(signal)
        return started

    def agree(self, last: int) -> None:
        """Note that all ranks stop after batch ``last``."""
        with self._watchdog:
            self.last = last


class ControlThread:
    """Thread that answers stop requests and requests for diagnostics, even while the blocks compute or wait."""

    def __init__(
        self, store: LauncherStore, size: int, stop: StopConsensus, watchdog: Watchdog, state: Callable[[], str]
    ) -> None:
        """Start the thread.

        Args:
            store: Store by which the ranks exchange requests and answers.
            size: Number of ranks.
            stop: Agreement of this rank.
            watchdog: Ends the waits of this rank when the store does not answer.
            state: Returns the wait of this rank, and the state of its channels.
        """
        self._store = store
        self._size = size
        self._stop = stop
        self._watchdog = watchdog
        self._state = state
        self.on_poll: Callable[[], None] = lambda: None
        """Called between looks at the store."""
        self._caught: int | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def request(self, signal: int) -> None:
        """Make all ranks stop."""
        self._caught = signal
        self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join(_ANSWERS_WITHIN)

    def diagnose(self) -> str:
        """Ask all ranks for their state; a paragraph for each. Takes seconds.

        The first rank that asks reports for all: later ones get an empty text.
        """
        answers: list[str] = []
        # On a thread, as the process that hosts the store may be the one that does not answer.
        asking = threading.Thread(target=self._ask, args=(answers,), name="diagnostics", daemon=True)
        asking.start()
        asking.join(2 * _ANSWERS_WITHIN)
        if asking.is_alive() and not answers:
            answers = [f"rank {self._store.rank}: {self._state()}", "the launcher's store does not answer"]
        return "".join(f"\n{answer}" for answer in answers)

    def _ask(self, answers: list[str]) -> None:
        try:
            if self._store.increment("inquiries") > 1:
                time.sleep(1.5 * _ANSWERS_WITHIN)
                return
            self._store.set("inquiry", "")
            deadline = time.monotonic() + _ANSWERS_WITHIN
            answers.extend([f"rank {rank}: {self._state_of(rank, deadline)}" for rank in range(self._size)])
        except ChannelError as error:
            answers.append(str(error))

    def _state_of(self, rank: int, deadline: float) -> str:
        if rank == self._store.rank:
            return self._state()
        there = self._store.await_key(f"state/{rank}", deadline, self._closing.is_set)
        return self._store.get(f"state/{rank}").decode() if there else "does not answer"

    def _run(self) -> None:
        try:
            self._serve()
        except ChannelError as error:
            time.sleep(LOSS_GRACE)
            if isinstance(error, SilentStoreError):
                self._watchdog.lose(error.reason)
            else:
                self._watchdog.fail(error)

    def _serve(self) -> None:
        answered = agreed = False
        while not self._closing.is_set():
            self._wake.wait(_INTERVAL)
            self._wake.clear()
            if self._caught is not None:
                self._store.set("stop", str(self._caught))
                self._caught = None
            if not agreed and self._store.has("stop"):
                self._agree(int(self._store.get("stop")))
                agreed = True
            self.on_poll()
            if not answered and self._store.has("inquiry"):
                self._store.set(f"state/{self._store.rank}", self._state())
                answered = True

    def _agree(self, signal: int) -> None:
        self._store.set(f"started/{self._store.rank}", str(self._stop.request(signal)))
        started = []
        deadline = time.monotonic() + 2 * _ANSWERS_WITHIN
        for rank in range(self._size):
            if not self._store.await_key(f"started/{rank}", deadline, self._closing.is_set):
                if not self._closing.is_set():
                    self._watchdog.fail(
                        ChannelError(f"rank {self._store.rank}: rank {rank} does not say which batch it is in")
                    )
                return
            started.append(int(self._store.get(f"started/{rank}")))
        self._stop.agree(max(started))
