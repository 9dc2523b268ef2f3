"""Weights of the best evaluation: blocks write theirs after every one, and all but the best are removed."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from counterflow.checkpoint.directory import BlockWritten, CheckpointDirectory, block_file, remove_folder


class BestWeights:
    """Chooses the evaluation with the highest score; of equal ones, the first.

    The choice is a function of the scores alone. An evaluation of which a block could not be written does not count.
    """

    def __init__(self, directory: CheckpointDirectory, blocks: int, start: int, scores: Mapping[int, float]) -> None:
        """Args:
        directory: Where the blocks write their weights.
        blocks: Number of blocks.
        start: Training batches before this start of the run.
        scores: Score of every evaluation until then, by the training batches before it.
        """
        self.score: float | None = None
        """That of the best evaluation so far; None if there is none."""
        self.batches: int | None = None
        """Training batches before it."""
        self._directory = directory
        self._blocks = blocks
        self._scores = dict(scores)
        self._written: dict[int, dict[int, bool]] = defaultdict(dict)
        """True for a block that is on the disk, by batches and block."""
        for batches, folder in directory.folders():
            if batches <= start:  # all later ones are reported again
                self._written[batches] = {b: block_file(folder, b).exists() for b in range(1, blocks + 1)}
                self._judge(batches)

    def add_score(self, batches: int, score: float) -> None:
        """Take the score of the evaluation after ``batches`` training batches."""
        self._scores[batches] = score
        self._judge(batches)

    def add_written(self, written: BlockWritten) -> None:
        """Take the report of one block, in any order; a restarted rank reports its blocks again."""
        self._written[written.batches][written.block] = not written.error
        self._judge(written.batches)

    def load(self) -> dict[str, Tensor]:
        """The best weights of all blocks by their names, on the CPU. Raises ``OSError``."""
        assert self.batches is not None, "there is a best evaluation"
        folder, state = self._directory.folder(self.batches), dict[str, Tensor]()
        for block in range(1, self._blocks + 1):
            state |= torch.load(block_file(folder, block), map_location="cpu", weights_only=True)
        return state

    def remove(self) -> None:
        """Remove all files of blocks."""
        remove_folder(self._directory.path)

    def _judge(self, batches: int) -> None:
        """Keep or remove the weights after ``batches`` batches, once their score and all their blocks are there."""
        written = self._written[batches]
        if batches not in self._scores or len(written) < self._blocks or batches == self.batches:
            return
        rank = self._scores[batches], -batches
        if not all(written.values()) or (self.batches is not None and rank < (self.score, -self.batches)):
            remove_folder(self._directory.folder(batches))
            return
        if self.batches is not None:
            remove_folder(self._directory.folder(self.batches))
        self.score, self.batches = self._scores[batches], batches
