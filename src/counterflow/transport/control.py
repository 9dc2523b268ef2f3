"""The thread by which a rank hears what others ask outside the two streams, however busy or stuck its blocks are."""

import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from counterflow.transport.stop_consensus import StopConsensus

_INTERVAL = 0.2
"""Seconds between looks at the store."""

_ANSWERS_WITHIN = 2.0
"""Seconds in which a rank that is alive says how it is."""


class ControlThread:
    """Agrees on a `StopConsensus`, and answers when another rank asks how this one is."""

    def __init__(self, store: Store, rank: int, size: int, halt: StopConsensus, state: Callable[[], str]) -> None:
        """``state`` says what this rank waits for, and how its channels are."""
        self._store = store
        self._rank = rank
        self._size = size
        self._stop = halt
        self._state = state
        self.on_whole: Callable[[int], None] | None = None
        """Hears after how many batches the newest whole checkpoint was taken, if anybody says so."""
        self._caught: int | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="attendant", daemon=True)
        self._thread.start()

    def request(self, signal: int) -> None:
        """Have all ranks stop."""
        self._caught = signal
        self._wake.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(_ANSWERS_WITHIN)

    def inquire(self) -> str:
        """How every rank is, a paragraph each. Takes some seconds; the ranks that ask later are told nothing, as the
        first one speaks for all."""
        answers: list[str] = []
        # The store may be the process that does not answer.
        asking = threading.Thread(target=self._ask, args=(answers,), name="inquiry", daemon=True)
        asking.start()
        asking.join(2 * _ANSWERS_WITHIN)
        return "".join(f"\n{answer}" for answer in answers) if answers or not asking.is_alive() else self._silence()

    def _silence(self) -> str:
        return f"\nrank {self._rank}: {self._state()}\nthe store, by which ranks find each other, does not answer"

    def _ask(self, answers: list[str]) -> None:
        try:
            if self._store.add("inquiries", 1) > 1:
                time.sleep(1.5 * _ANSWERS_WITHIN)
                return
            self._store.set("inquiry", "")
            deadline = time.monotonic() + _ANSWERS_WITHIN
            found: list[str] = []
            for rank in range(self._size):
                key = f"state/{rank}"
                while rank != self._rank and not self._store.check([key]) and time.monotonic() < deadline:
                    time.sleep(0.02)
                if rank == self._rank:
                    found.append(f"rank {rank}: {self._state()}")
                elif self._store.check([key]):
                    found.append(f"rank {rank}: {self._store.get(key).decode()}")
                else:
                    found.append(f"rank {rank}: does not answer")
            answers.extend(found)
        except RuntimeError:  # the store is gone, and the processes with it
            return

    def _run(self) -> None:
        answered = decided = False
        whole = b""
        try:
            while not self._closing:
                self._wake.wait(_INTERVAL)
                self._wake.clear()
                if self._caught is not None:
                    self._store.set("halt", str(self._caught))
                    self._caught = None
                if not decided and self._store.check(["halt"]):
                    self._agree(int(self._store.get("halt")))
                    decided = True
                if self.on_whole is not None and self._store.check(["whole"]):
                    before, whole = whole, self._store.get("whole")
                    if whole != before:
                        self.on_whole(int(whole))
                if not answered and self._store.check(["inquiry"]):
                    self._store.set(f"state/{self._rank}", self._state())
                    answered = True
        except RuntimeError:  # the store is gone: the run ends, and others say why
            return

    def _agree(self, signal: int) -> None:
        self._store.set(f"begun/{self._rank}", str(self._stop.request(signal)))
        begun = []
        deadline = time.monotonic() + 2 * _ANSWERS_WITHIN
        for rank in range(self._size):
            while not self._store.check([f"begun/{rank}"]):
                if self._closing:
                    return
                if time.monotonic() > deadline:
                    self._stop.fail(f"rank {self._rank}: rank {rank} does not say which batch it is in")
                    return
                time.sleep(0.02)
            begun.append(int(self._store.get(f"begun/{rank}")))
        self._stop.agree(max(begun))
