"""How all ranks agree on the batch after which they stop early, while none of them knows how far the others are."""

import threading
from collections.abc import Callable

from counterflow.transport.channel import ChannelError, Watchdog


class StopConsensus:
    """Once asked, a rank begins no other batch before all have said which one they are in; the highest is the last.

    Whatever a block needs to finish that batch comes from blocks that finish it too, so nobody waits in vain.
    """

    def __init__(self, rank: int, watch: Watchdog, on_halt: Callable[[int], None]) -> None:
        """``on_halt`` hears of the signal, once, on whatever thread learns of it first."""
        self._rank = rank
        self._watch = watch
        self._on_halt = on_halt
        self._lock = threading.Lock()
        self._begun = 0
        self.possible = False
        """Whether the run has begun, so that there is something to stop."""
        self.last: int | None = None
        """The batch after which all stop, once they have agreed; the last of all if it was too late to stop."""
        self.signal: int | None = None
        """The signal that somebody caught; None if nobody did."""

    def start(self, n: int) -> None:
        """This rank begins with batch ``n``."""
        with self._lock:
            self._begun = n
            self.possible = True

    def should_stop_after(self, n: int) -> bool:
        """Whether the run stops after batch ``n``, which this rank has finished. Raises `ChannelError`."""
        with self._lock:
            if self.signal is None:
                self._begun = n + 1
                return False
        self._watch.wait(lambda: self.last is not None, f"rank {self._rank}: all ranks to say which batch they are in")
        assert self.last is not None
        return n >= self.last

    def request(self, signal: int) -> int:
        """Stop at the next chance. Returns the batch that this rank is in."""
        with self._lock:
            first, self.signal = self.signal is None, self.signal or signal
            begun = self._begun
        if first:
            self._on_halt(signal)
        return begun

    def fail(self, why: str) -> None:
        """Not all can be asked: the run ends as it is."""
        self._watch.fail(ChannelError(why))

    def agree(self, last: int) -> None:
        """All ranks have said where they are."""
        with self._watch:
            self.last = last
