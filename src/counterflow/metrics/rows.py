"""Rows, from the records of all blocks as they come in."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from counterflow.metrics.record import Record, Row

_ORDER = ("train", "validation", "test")


class Rows:
    """Calls ``sink`` with every row, in the order of batches, once the records of all ``blocks`` are in.

    Blocks of one rank can be ahead of the others', and under a rule that predicts at the bottom the bottom alone
    reports evaluations: a row that is complete waits for those before it.
    """

    def __init__(
        self,
        blocks: int,
        objective: Callable[[Sequence[Mapping[str, float]]], Mapping[str, float]],
        sink: Callable[[Row], None],
        start: int = 0,
    ) -> None:
        """Records of batches before ``start`` belong to rows begun before an interruption: they are dropped."""
        self._blocks = blocks
        self._objective = objective
        self._sink = sink
        self._start = start
        self._partial: dict[tuple[int, int], list[Record]] = defaultdict(list)

    def add(self, record: Record) -> None:
        if record.n < self._start:
            return
        self._partial[record.n, _ORDER.index(record.event)].append(record)
        while self._partial and len(self._partial[min(self._partial)]) == self._blocks:
            self._complete(self._partial.pop(min(self._partial)))

    def _complete(self, records: list[Record]) -> None:
        records.sort(key=lambda r: r.block)
        event, n = records[0].event, records[0].n
        system = self._objective([r.figures for r in records]) if event == "train" else {}
        self._sink(Row(event, n, records, system))
