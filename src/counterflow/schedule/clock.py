"""The one event core of all simulations: ranks take steps against channels on a clock, without tensors or processes.

No step asks "is something there?", so no global order of events is needed: a rank runs until the time of a message, or
of the end of a send, is not known yet, and goes on when the other end of the channel has made it known.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar


class DeadlockError(Exception):
    """No rank can go on; the message says what each waits for."""


class Deed(Protocol):
    """What a step belongs to; its text is its name in a timetable."""

    @property
    def completes(self) -> tuple[int, int] | None:
        """The block, or stage, and the batch whose update is over with this deed; None if none is."""
        ...


D = TypeVar("D", bound=Deed)
BlockMetrics = Callable[[int, D, float, float], object]
"""Is told the rank, the deed, its start and its end."""


@dataclass(frozen=True)
class Span(Generic[D]):
    action: D
    start: float
    end: float


@dataclass(frozen=True)
class Timetable(Generic[D]):
    """What each rank did when."""

    spans: list[list[Span[D]]]

    @property
    def makespan(self) -> float:
        return max(spans[-1].end for spans in self.spans)

    def seconds_per_batch(self, first: int, last: int) -> float:
        """Mean time from the update of batch ``first`` to that of batch ``last`` in the slowest block or stage."""
        ends = {span.action.completes: span.end for spans in self.spans for span in spans}
        places = {completed[0] for completed in ends if completed is not None}
        return max(ends[place, last] - ends[place, first] for place in places) / (last - first)


class Verb(IntEnum):
    WORK = 0
    """Compute."""
    TAKE = 1
    """Wait until the next message is here."""
    POST = 2
    """Post a receive for a further message."""
    SEND = 3
    """Hand over the next message; it leaves when a receive is posted."""
    SENT = 4
    """Wait until the oldest send that was not waited for yet is over."""


class Channel:
    """A FIFO from rank ``source`` to rank ``destination``.

    A message leaves when it has been handed over, a receive posted for it is known to the sender and the one before has
    left. It occupies the link for ``seconds``; then its send is over, and after ``latency`` more it is there; a receive
    is known ``credit`` after it was posted. ``posted`` receives are posted from the start, and the first ``buffers``
    sends that are waited for are over from the start.
    """

    __slots__ = (
        "_credit",
        "_destination",
        "_free",
        "_handed",
        "_latency",
        "_posted",
        "_seconds",
        "_source",
        "arrivals",
        "over",
    )

    def __init__(
        self,
        source: int,
        destination: int,
        posted: int = 0,
        buffers: int = 0,
        seconds: float = 0.0,
        latency: float = 0.0,
        credit: float = 0.0,
    ) -> None:
        self._source = source
        self._destination = destination
        self._seconds = seconds
        self._latency = latency
        self._credit = credit
        self._free = 0.0
        """When the link has sent everything."""
        self._handed = deque[float]()
        self._posted = deque([credit] * posted)
        """When the sender knows of receives that no message has met."""
        self.arrivals = deque[float]()
        """Of messages not yet taken."""
        self.over = deque([0.0] * buffers)
        """Ends of sends not yet waited for."""

    def send(self, now: float) -> int | None:
        """Hand over a message; the rank at the other end if that learns something from it."""
        if not self._posted:
            self._handed.append(now)
            return None
        self._transfer(max(now, self._posted.popleft()))
        return self._destination

    def post(self, now: float) -> int | None:
        """Post a receive; the rank at the other end if that learns something from it."""
        if not self._handed:
            self._posted.append(now + self._credit)
            return None
        self._transfer(max(now + self._credit, self._handed.popleft()))
        return self._source

    def _transfer(self, start: float) -> None:
        end = self._free = max(start, self._free) + self._seconds
        self.over.append(end)
        self.arrivals.append(end + self._latency)


Part = tuple[Verb, Channel | None]
"""A verb, and the channel of every verb but `WORK`."""


class Step(NamedTuple, Generic[D]):
    """What a rank does for one deed: its parts in order, with ``seconds`` of work."""

    deed: D
    seconds: float
    parts: tuple[Part, ...]


def run(programs: Sequence[Iterator[Step[D]]], record: BlockMetrics[D]) -> None:
    """Run the programs of all ranks to the end, all from time 0.

    Raises `DeadlockError` when they cannot end.
    """
    TAKE, POST, SENT = Verb.TAKE, Verb.POST, Verb.SENT
    clock = [0.0] * len(programs)
    current = [next(program, None) for program in programs]
    place = [0] * len(programs)
    """The part of the current step that comes next."""
    waiting: list[Channel | None] = [None] * len(programs)
    ready = deque(range(len(programs)))
    while ready:
        rank = ready.popleft()
        now, step, at, program = clock[rank], current[rank], place[rank], programs[rank]
        while step is not None and waiting[rank] is None:
            deed, seconds, parts = step
            for verb, channel in parts[at:] if at else parts:
                if channel is None:
                    record(rank, deed, now, now + seconds)
                    now += seconds
                elif verb is TAKE or verb is SENT:
                    known = channel.arrivals if verb is TAKE else channel.over
                    if not known:
                        waiting[rank] = channel
                        break
                    then = known.popleft()
                    if then > now:
                        now = then
                else:
                    peer = channel.post(now) if verb is POST else channel.send(now)
                    if peer is not None and waiting[peer] is channel:
                        waiting[peer] = None
                        ready.append(peer)
                at += 1
            else:
                step, at = next(program, None), 0
        clock[rank], current[rank], place[rank] = now, step, at
    if any(step is not None for step in current):
        raise DeadlockError(
            "; ".join(
                f"rank {rank} {'waits in' if step.parts[at][0] is TAKE else 'sends'} {step.deed}"
                for rank, (step, at) in enumerate(zip(current, place, strict=True))
                if step is not None
            )
        )
