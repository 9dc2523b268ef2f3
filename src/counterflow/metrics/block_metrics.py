"""Metrics of one block for one batch, and the rows that rank 0 assembles from those of all blocks."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_EVENTS = ("train", "validation", "test")


@dataclass(frozen=True)
class BlockMetrics:
    event: str
    """``train``, or the split that was evaluated: ``validation``, ``test``."""
    n: int
    """Training batch."""
    block: int
    rank: int
    metrics: Mapping[str, float]
    """As `LocalRule.update` returns them, or of an evaluation."""
    seconds: float
    """Since this rank started, plus those of the run before it was resumed."""
    waited: float
    """Share of the time since this rank started that it waited for messages."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BlockMetrics":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class StepMetrics:
    """One row: the metrics of all blocks for batch ``n``, and those of the whole model."""

    event: str
    n: int
    records: Sequence[BlockMetrics]
    """One per block, bottom to top."""
    system: Mapping[str, float]
    """Metrics of the whole model."""

    @property
    def seconds(self) -> float:
        """Those of the slowest block."""
        return max(record.seconds for record in self.records)

    @property
    def waited(self) -> list[float]:
        """Share of the time that each rank waited."""
        return list({record.rank: record.waited for record in self.records}.values())

    def column(self, name: str) -> list[float | None]:
        """Metric ``name`` of every block; None for a block that does not report it."""
        return [record.metrics.get(name) for record in self.records]

    def to_json(self) -> str:
        """The row as a line of ``metrics.jsonl``."""
        names = dict.fromkeys(name for record in self.records for name in record.metrics)
        content: dict[str, Any] = {
            "event": self.event,
            "n": self.n,
            "seconds": round(self.seconds, 4),
            **self.system,
            **{name: self.column(name) for name in names},
            "wait_fraction": [round(share, 4) for share in self.waited],
        }
        return json.dumps(content)


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
    ) -> None:
        """Args:
        blocks: number of blocks that report each row.
        summarize: metrics of the whole model from those of its blocks, bottom to top.
        sink: called with every row.
        start: first batch of a resumed run. Metrics of earlier batches are dropped.
        """
        self._blocks = blocks
        self._summarize = summarize
        self._sink = sink
        self._next = (start, 0)
        self._partial: dict[tuple[int, int], dict[int, BlockMetrics]] = defaultdict(dict)

    def add(self, record: BlockMetrics) -> None:
        key = record.n, _EVENTS.index(record.event)
        if key < self._next:  # reported again by a restarted rank
            return
        self._partial[key][record.block] = record
        while self._partial and len(self._partial[first := min(self._partial)]) == self._blocks:
            blocks = self._partial.pop(first)
            self._next = first[0], first[1] + 1
            records = [blocks[block] for block in sorted(blocks)]
            event = _EVENTS[first[1]]
            system = self._summarize([r.metrics for r in records]) if event == "train" else {}
            self._sink(StepMetrics(event, first[0], records, system))
