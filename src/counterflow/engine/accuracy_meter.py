"""Accuracy over the batches of an evaluation."""

import torch
from torch import Tensor


class AccuracyMeter:
    """Counts where the predictions of one or several blocks meet the labels."""

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
        """The figures of each row since the last time, none if nothing was added: ``accuracy``, and of sequences, for
        which this is the share of positions, ``sequence_accuracy``, the share that is right at every position.
        """
        if not self._hits:
            return []
        figures = [{"accuracy": share} for share in _shares(self._hits, self._labels)]
        if self._sequences:
            for row, share in zip(figures, _shares(self._whole, self._samples), strict=True):
                row["sequence_accuracy"] = share
        self._clear()
        return figures

    def _clear(self) -> None:
        self._hits: list[Tensor] = []
        self._whole: list[Tensor] = []
        self._labels = 0
        self._samples = 0
        self._sequences = False


def _shares(hits: list[Tensor], total: int) -> list[float]:
    shares: list[float] = (torch.stack(hits).sum(0).double() / total).tolist()
    return shares
