"""Evaluation results of blocks: accuracy, and activations that are kept for reports."""

import torch
from torch import Tensor

from counterflow.models.head import pooling
from counterflow.schedule import RunPlan

_MOST_DIMENSIONS = 4096
"""Feature maps are pooled to at most so many: whole ones of a large network would not fit into memory."""


class AccuracyMeter:
    """Counts correct predictions of one or several blocks over the batches of an evaluation."""

    def __init__(self) -> None:
        self._right: list[Tensor] = []

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """``predictions`` are ``[K, *labels.shape]``, a row a block."""
        self._right.append(predictions == labels)

    def take(self) -> list[dict[str, float]]:
        """Metrics of each row since the last call; an empty list if nothing was added.

        ``accuracy`` is the share of labels; of sequences there is also ``sequence_accuracy``, the share of sequences
        that are right at every position.
        """
        if not self._right:
            return []
        right = torch.cat(self._right, 1)
        self._right.clear()
        hits = {"accuracy": right.flatten(1)}
        if right.ndim > 2:
            hits["sequence_accuracy"] = right.flatten(2).all(2)
        shares = {name: (hit.sum(1).double() / hit.shape[1]).tolist() for name, hit in hits.items()}
        return [{name: share[row] for name, share in shares.items()} for row in range(len(right))]


class ActivationRecorder:
    """Keeps the outputs of one block for the first ``most`` test samples after the last batch."""

    def __init__(self, most: int, plan: RunPlan) -> None:
        self._most = most
        self._plan = plan
        self._kept: list[Tensor] = []

    def offer(self, n: int, e: int, output: Tensor) -> None:
        """Keep what is still missing from ``output``, of evaluation batch ``e`` after batch ``n``."""
        room = self._most - sum(map(len, self._kept))
        if n < self._plan.batches - 1 or e < self._plan.validation_batches or room <= 0:
            return
        output = output[:room].float()
        if output.ndim == 4:
            _, channels, height, width = output.shape
            pool, _ = pooling((channels, height, width), _MOST_DIMENSIONS)
            output = pool(output)
        self._kept.append(output.flatten(1).cpu())

    def take(self) -> Tensor | None:
        """``[M, d]``; None if nothing was wanted."""
        return torch.cat(self._kept) if self._kept else None
