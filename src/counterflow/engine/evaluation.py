"""Evaluation results of blocks: accuracy, and activations that are kept for reports."""

from collections.abc import Mapping
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.data.batch_loader import View
from counterflow.models.head import pooling
from counterflow.schedule import RunPlan

_MOST_DIMENSIONS = 4096
"""Feature maps are pooled to at most so many: whole ones of a large network would not fit into memory."""


class AccuracyMeter:
    """Counts correct predictions of one or several blocks over the batches of an evaluation; of text, also its bits."""

    def __init__(self, tokens_per_byte: Mapping[str, float] | None = None) -> None:
        """``tokens_per_byte``: of text in each split; None where the inputs are no text."""
        self._tokens_per_byte = tokens_per_byte
        self._nats: list[Tensor] = []
        """Cross entropy of each position of text, float64 ``[K, positions]``."""
        self._right: list[Tensor] = []
        self._right_of_views: list[Tensor] = []
        self._scores: Tensor | None = None
        """Weighted sum over the views of a batch before the plain one."""

    def add(self, predictions: Tensor, scores: Tensor, labels: Tensor, view: View) -> None:
        """Add ``predictions``, ``[K, *labels.shape]``, a row a block, with ``scores``, ``[K, *labels.shape, C]``.

        Those of the plain view are counted; where other views of the same samples came before it, the greatest of the
        average scores is counted too.
        """
        if view.plain and self._scores is None:
            self._right.append(predictions == labels)
            if self._tokens_per_byte is not None:
                self._nats.append(torch.stack([_nats(row, labels) for row in scores]))
            return
        weighted = view.weight * scores.float()
        self._scores = weighted if self._scores is None else self._scores + weighted
        if view.plain:
            self._right.append(predictions == labels)
            self._right_of_views.append(self._scores.argmax(-1) == labels)
            self._scores = None

    def take(self, split: str) -> list[dict[str, float]]:
        """Metrics of each row since the last call, of the data of ``split``; an empty list if nothing was added.

        ``accuracy`` is the share of labels; of sequences there is also ``sequence_accuracy``, the share of sequences
        that are right at every position; with several views, ``tta_accuracy``, the accuracy of their average. Of text
        there are ``perplexity``, of a token, and ``bits_per_byte``.
        """
        if not self._right:
            return []
        right = torch.cat(self._right, 1)
        self._right.clear()
        hits = {"accuracy": right.flatten(1)}
        if self._nats:
            nats = torch.cat(self._nats, 1).mean(1)
            self._nats.clear()
        elif right.ndim > 2:
            hits["sequence_accuracy"] = right.flatten(2).all(2)
        if self._right_of_views:
            hits["tta_accuracy"] = torch.cat(self._right_of_views, 1).flatten(1)
            self._right_of_views.clear()
        shares = {name: (hit.sum(1).double() / hit.shape[1]).tolist() for name, hit in hits.items()}
        if self._tokens_per_byte is not None:
            shares["perplexity"] = nats.exp().tolist()
            shares["bits_per_byte"] = (nats * self._tokens_per_byte[split] / log(2)).tolist()
        return [{name: share[row] for name, share in shares.items()} for row in range(len(right))]


def _nats(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every position: ``[B, T, C]`` scores of ``[B, T]`` labels to float64 ``[B * T]``."""
    # Sample by sample: the logarithms of all scores would take as much memory again.
    rows = [F.cross_entropy(s.float(), y, reduction="none") for s, y in zip(scores, labels, strict=True)]
    return torch.cat(rows).double()


class ActivationRecorder:
    """Keeps the outputs of one block for the first ``most`` test samples after the last batch."""

    def __init__(self, most: int, plan: RunPlan) -> None:
        self._most = most
        self._plan = plan
        self._kept: list[Tensor] = []

    def offer(self, n: int, e: int, output: Tensor) -> None:
        """Keep what is still missing from ``output``, of evaluation batch ``e`` after batch ``n``."""
        room = self._most - sum(map(len, self._kept))
        views = self._plan.views
        of_test = self._plan.ends_with(n) and e >= self._plan.validation_batches
        if not of_test or e % views < views - 1 or room <= 0:
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
