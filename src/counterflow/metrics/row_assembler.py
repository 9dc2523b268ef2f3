"""Rows, from the records of all blocks as they come in."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from counterflow.metrics.block_metrics import BlockMetrics, StepMetrics

_ORDER = ("train", "validation", "test")


class RowAssembler:
    """Calls ``sink`` with every row, in the order of batches, once the records of all ``blocks`` are in.

    Blocks of one rank can be ahead of the others', and under a rule that predicts at the bottom the bottom alone
    reports evaluations: a row that is complete waits for those before it.
    """

    def __init__(
        self,
        blocks: int,
        summarize: Callable[[Sequence[Mapping[str, float]]], Mapping[str, float]],
        sink: Callable[[StepMetrics], None],
        start: int = 0,
    ) -> None:
        """Records of batches before ``start`` belong to rows begun before an interruption: they are dropped. So is what
        a rank reports again that was replaced."""
        self._blocks = blocks
        self._objective = summarize
        self._sink = sink
        self._next = (start, 0)
        self._partial: dict[tuple[int, int], dict[int, BlockMetrics]] = defaultdict(dict)

    def add(self, record: BlockMetrics) -> None:
        key = record.n, _ORDER.index(record.event)
        if key < self._next:
            return
        self._partial[key][record.block] = record
        while self._partial and len(self._partial[first := min(self._partial)]) == self._blocks:
            blocks = self._partial.pop(first)
            self._next = first[0], first[1] + 1
            self._complete([blocks[block] for block in sorted(blocks)])

    def _complete(self, records: list[BlockMetrics]) -> None:
        event, n = records[0].event, records[0].n
        system = self._objective([r.figures for r in records]) if event == "train" else {}
        self._sink(StepMetrics(event, n, records, system))
