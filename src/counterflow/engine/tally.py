"""Accuracy over the batches of an evaluation."""

import torch
from torch import Tensor


class Tally:
    """Counts where the predictions of one or several blocks meet the labels."""

    def __init__(self) -> None:
        self._hits: list[Tensor] = []
        self._labels = 0

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """``predictions`` are ``[K, *labels.shape]``, a row a block."""
        self._hits.append((predictions == labels).flatten(1).sum(1))
        self._labels += labels.numel()

    def take(self) -> list[float]:
        """The accuracy of each row since the last time; empty if nothing was added."""
        if not self._hits:
            return []
        accuracies: list[float] = (torch.stack(self._hits).sum(0).double() / self._labels).tolist()
        self._hits, self._labels = [], 0
        return accuracies
