"""Metrics of one block for one batch: their report to rank 0, and the rows that rank 0 assembles from all blocks."""

import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Generic, TypeVar

from torch import Tensor

from counterflow.checkpoint.directory import Report

_EVENTS = ("train", "validation", "test")
_INTERVAL = 0.2
"""Seconds between polls. A display needs no more, and every poll takes time from a core that trains."""

Value = float | Sequence[float]
"""One number, or several such as ``bits_by_position``."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class BlockMetrics(Report):
    event: str
    """``train``, or the split that was evaluated: ``validation``, ``test``."""
    n: int
    """Training batch."""
    block: int
    """Number of the block; of the copies in further replicas, the numbers go on, replica after replica."""
    rank: int
    metrics: Mapping[str, Value]
    """As `LocalRule.update` returns them, or of an evaluation."""
    seconds: float
    """Since this rank started, plus those of the run before it was resumed."""
    waited: float
    """Share of the time since this rank started that it waited for messages."""

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics of one number each."""
        return {name: value for name, value in self.metrics.items() if not isinstance(value, Sequence)}


def score(metrics: Mapping[str, float | None]) -> float | None:
    """Score of an evaluation of the network, the greater the better; None if it has no prediction.

    It is the accuracy, or of text the bits per byte with the sign changed. What is no number is the worst.
    """
    bits = metrics.get("bits_per_byte")
    if bits is None:
        return metrics.get("accuracy")
    return -math.inf if math.isnan(bits) else -bits


@dataclass(frozen=True)
class MetricsCallback:
    """Engine callback that reports the metrics of one rank's blocks to rank 0.

    It reports every ``every`` batches, the last batch and all evaluations. Numbers leave the device only then.
    """

    rank: int
    every: int
    """Batches between two reports."""
    ends_with: Callable[[int], bool]
    """True for the last training batch."""
    waited: Callable[[], float]
    """Returns the seconds that this rank has waited for messages so far."""
    report: Callable[[BlockMetrics], None]
    """Sends a report to rank 0."""
    before: float = 0.0
    """Seconds of the run before it was resumed."""
    start: float = field(default_factory=perf_counter)
    """Time at which this rank started."""

    def should_log(self, n: int) -> bool:
        return n % self.every == 0 or self.ends_with(n)

    def on_step(self, block: int, n: int, metrics: Mapping[str, Tensor]) -> None:
        if self.should_log(n):
            self.on_eval(block, n, "train", {name: float(value) for name, value in metrics.items()})

    def on_eval(self, block: int, n: int, split: str, metrics: Mapping[str, Value]) -> None:
        seconds = perf_counter() - self.start
        waited = self.waited() / max(seconds, 1e-9)
        self.report(BlockMetrics(split, n, block, self.rank, metrics, self.before + seconds, waited))


@dataclass(frozen=True)
class StepMetrics:
    """One row: the metrics of all blocks for batch ``n``, and those of the whole model."""

    event: str
    n: int
    records: Sequence[BlockMetrics]
    """One per block, bottom to top."""
    system: Mapping[str, float]
    """Metrics of the whole model."""
    copies: Sequence[BlockMetrics] = ()
    """The records that were averaged, of all replicas; empty if there is one."""

    @property
    def seconds(self) -> float:
        """Those of the slowest block."""
        return max(record.seconds for record in self.records)

    @property
    def waited(self) -> list[float]:
        """Share of the time that each rank waited."""
        return list({record.rank: record.waited for record in self.copies or self.records}.values())

    def column(self, name: str) -> list[float | None]:
        """Metric ``name`` of every block; None for a block that does not report it."""
        return [record.numbers.get(name) for record in self.records]

    def lists(self, name: str) -> list[Sequence[float] | None]:
        """Metric ``name`` of several numbers, of every block; None for a block that does not report it."""
        values = (record.metrics.get(name) for record in self.records)
        return [value if isinstance(value, Sequence) else None for value in values]

    @property
    def score(self) -> float | None:
        """`score` of the network, which predicts at the top block."""
        return score(self.records[-1].numbers)

    def scalars(self) -> dict[str, float]:
        """All metrics of one number, as loggers show them: ``train/free_energy``, ``train/loss/block1``."""
        blocks = {f"{name}/block{r.block}": value for r in self.records for name, value in r.numbers.items()}
        return {f"{self.event}/{name}": value for name, value in {**self.system, **blocks}.items()}

    def to_json(self) -> str:
        """The row as a line of ``metrics.jsonl``."""
        names = dict.fromkeys(name for record in self.records for name in record.metrics)
        return json.dumps(
            {
                "event": self.event,
                "n": self.n,
                "seconds": round(self.seconds, 4),
                **self.system,
                **{name: [record.metrics.get(name) for record in self.records] for name in names},
                "wait_fraction": [round(share, 4) for share in self.waited],
            }
        )


class RowAssembler:
    """Calls ``sink`` with every complete row, in the order of batches.

    Blocks of one rank can be ahead of the others, and under some rules only the bottom block reports evaluations. A
    complete row therefore waits for the rows before it.
    """

    def __init__(
        self,
        blocks: int,
        summarize: Callable[[Sequence[Mapping[str, float]]], Mapping[str, float]],
        sink: Callable[[StepMetrics], None],
        start: int = 0,
        replicas: int = 1,
    ) -> None:
        """Args:
        blocks: number of blocks that report each row.
        summarize: metrics of the whole model from those of its blocks, bottom to top.
        sink: called with every row.
        start: first batch of a resumed run. Metrics of earlier batches are dropped.
        replicas: copies of every block, all of which report training batches. A row has their means.
        """
        self._blocks = blocks
        self._replicas = replicas
        self._summarize = summarize
        self._sink = sink
        self._next = (start, 0)
        self._partial: dict[tuple[int, int], dict[int, BlockMetrics]] = defaultdict(dict)

    def add(self, record: BlockMetrics) -> None:
        key = record.n, _EVENTS.index(record.event)
        if key < self._next:  # reported again by a restarted rank
            return
        self._partial[key][record.block] = record
        while self._partial:
            first = min(self._partial)
            event = _EVENTS[first[1]]
            if len(self._partial[first]) < self._blocks * (self._replicas if event == "train" else 1):
                return
            pieces = self._partial.pop(first)
            self._next = first[0], first[1] + 1
            copies = [pieces[number] for number in sorted(pieces)]
            records = [_mean(copies[block :: self._blocks]) for block in range(self._blocks)]
            system = self._summarize([r.numbers for r in records]) if event == "train" else {}
            self._sink(StepMetrics(event, first[0], records, system, copies))


def _mean(copies: Sequence[BlockMetrics]) -> BlockMetrics:
    """The record of a block from those of its copies, which have equal shares of a batch."""
    first, *others = copies
    if not others:
        return first
    metrics = {name: sum(copy.numbers[name] for copy in copies) / len(copies) for name in first.numbers}
    return replace(first, metrics=metrics, seconds=max(copy.seconds for copy in copies))


class ReportPoller(Generic[Item]):
    """Calls ``deliver`` with every report, on one thread; reports of one rank come in their order."""

    def __init__(self, ranks: int, fetch: Callable[[int, int], Item | None], deliver: Callable[[Item], None]) -> None:
        """Start the thread. ``fetch(rank, i)`` returns report i of a rank, or None if it has not arrived."""
        self._fetch = fetch
        self._deliver = deliver
        self._next = [0] * ranks
        self._expected: Sequence[int] | None = None
        self._deadline = 0.0
        self._error: Exception | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report-poller", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the exception that ended the thread, if there was one."""
        if self._error is not None:
            raise self._error

    def finish(self, counts: Sequence[int], timeout: float) -> None:
        """Wait until ``counts`` reports of every rank are delivered, at most ``timeout`` seconds.

        Raises:
            TimeoutError: some did not arrive.
            Exception: as raised on the thread.
        """
        self._deadline = time.monotonic() + timeout
        self._expected = counts
        self._wake.set()
        self._thread.join(timeout + 1)
        self.check()
        if self._thread.is_alive() or self._next != list(counts):
            raise TimeoutError(f"{self._next} of {list(counts)} records per rank came within {timeout:g} s")

    def close(self) -> None:
        """Stop the thread; reports that have not arrived are dropped."""
        self._deadline, self._expected = 0.0, ()
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while self._expected is None or (self._next != list(self._expected) and time.monotonic() <= self._deadline):
                self._wake.wait(_INTERVAL if self._expected is None else 0.01)
                self._wake.clear()
                self._poll()
        except Exception as error:  # raised again by check() and finish() on the caller's thread
            self._error = error

    def _poll(self) -> None:
        for rank in range(len(self._next)):
            while (item := self._fetch(rank, self._next[rank])) is not None:
                self._next[rank] += 1
                self._deliver(item)
