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
        self._clear()

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """``predictions`` are ``[K, *labels.shape]``, a row a block."""
        right = predictions == labels
        self._hits.append(right.flatten(1).sum(1))
        self._whole.append(right.flatten(2).all(2).sum(1) if labels.ndim > 1 else right.sum(1))
        self._labels += labels.numel()
        self._samples += len(labels)
        self._sequences = labels.ndim > 1

    def take(self) -> list[dict[str, float]]:
        """Metrics of each row since the last call; an empty list if nothing was added.

        ``accuracy`` is the share of labels; of sequences there is also ``sequence_accuracy``, the share of sequences
        that are right at every position.
        """
        if not self._hits:
            return []
        metrics = [{"accuracy": share} for share in _shares(self._hits, self._labels)]
        if self._sequences:
            for row, share in zip(metrics, _shares(self._whole, self._samples), strict=True):
                row["sequence_accuracy"] = share
        self._clear()
        return metrics

    def _clear(self) -> None:
        self._hits: list[Tensor] = []
        self._whole: list[Tensor] = []
        self._labels = 0
        self._samples = 0
        self._sequences = False


def _shares(hits: list[Tensor], total: int) -> list[float]:
    shares: list[float] = (torch.stack(hits).sum(0).double() / total).tolist()
    return shares


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
