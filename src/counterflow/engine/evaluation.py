"""Evaluation results of blocks: accuracy, and activations that are kept for reports."""

from collections.abc import Mapping
from itertools import pairwise
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from counterflow.data.batch_loader import View
from counterflow.metrics.block_metrics import Value
from counterflow.metrics.positions import segments
from counterflow.models.head import pooling
from counterflow.schedule import RunPlan

_MOST_DIMENSIONS = 4096
"""Feature maps are pooled to at most so many: whole ones of a large network would not fit into memory."""


class AccuracyMeter:
    """Counts correct predictions of one or several blocks over the batches of an evaluation; of text, also its bits."""

    def __init__(self, tokens_per_byte: Mapping[str, float] | None = None) -> None:
        """``tokens_per_byte``: of text in each split; None where the inputs are no text."""
        self._tokens_per_byte = tokens_per_byte
        self._nats: Tensor | None = None
        """Cross entropy of each position of text, summed over the samples so far: float64 ``[K, T]``."""
        self._samples = 0
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
                nats = torch.stack([_nats(row, labels) for row in scores])
                self._nats = nats if self._nats is None else self._nats + nats
                self._samples += len(labels)
            return
        weighted = view.weight * scores.float()
        self._scores = weighted if self._scores is None else self._scores + weighted
        if view.plain:
            self._right.append(predictions == labels)
            self._right_of_views.append(self._scores.argmax(-1) == labels)
            self._scores = None

    def take(self, split: str) -> list[dict[str, Value]]:
        """Metrics of each row since the last call, of the data of ``split``; an empty list if nothing was added.

        ``accuracy`` is the share of labels; of sequences there is also ``sequence_accuracy``, the share of sequences
        that are right at every position; with several views, ``tta_accuracy``, the accuracy of their average. Of text
        there are ``perplexity``, of a token, ``bits_per_byte``, and ``bits_by_position``, the same in every one of the
        `segments` of a window.
        """
        if not self._right:
            return []
        right = torch.cat(self._right, 1)
        self._right.clear()
        hits = {"accuracy": right.flatten(1)}
        if self._nats is None and right.ndim > 2:
            hits["sequence_accuracy"] = right.flatten(2).all(2)
        if self._right_of_views:
            hits["tta_accuracy"] = torch.cat(self._right_of_views, 1).flatten(1)
            self._right_of_views.clear()
        shares: dict[str, list[Value]]
        shares = {name: (hit.sum(1).double() / hit.shape[1]).tolist() for name, hit in hits.items()}
        if self._nats is not None and self._tokens_per_byte is not None:
            nats, bits_per_nat = self._nats / self._samples, self._tokens_per_byte[split] / log(2)
            self._nats, self._samples = None, 0
            shares["perplexity"] = nats.mean(1).exp().tolist()
            shares["bits_per_byte"] = (nats.mean(1) * bits_per_nat).tolist()
            means = [nats[:, start:end].mean(1) for start, end in pairwise(segments(nats.shape[1]))]
            shares["bits_by_position"] = (torch.stack(means, 1) * bits_per_nat).tolist()
        return [{name: share[row] for name, share in shares.items()} for row in range(len(right))]


def _nats(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every position, summed over samples: scores ``[B, T, C]`` of labels ``[B, T]``, float64 ``[T]``.

    It goes sample by sample: the logarithms of all scores would take as much memory again.
    """
    total = torch.zeros(labels.shape[1], dtype=torch.float64, device=scores.device)
    for one, own in zip(scores, labels, strict=True):
        total += F.cross_entropy(one.float(), own, reduction="none")
    return total


def spread(most: int, samples: int) -> Tensor:
    """Indices of ``most`` of ``samples``, or of all if they are fewer, evenly from the first; int64, ascending.

    The first ones would be of one class, if the data is sorted by it, as in folders.
    """
    kept = min(most, samples)
    return torch.arange(kept) * samples // max(1, kept)


class ActivationRecorder:
    """Keeps the outputs of one block for ``most`` of the ``samples`` of test data (`spread`) after the last batch."""

    def __init__(self, most: int, samples: int, plan: RunPlan) -> None:
        self._wanted = spread(most, samples)
        self._seen = 0
        """Test samples offered so far."""
        self._plan = plan
        self._kept: list[Tensor] = []

    def offer(self, n: int, e: int, output: Tensor) -> None:
        """Keep what is wanted of ``output``, of evaluation batch ``e`` after batch ``n``. Offer every batch once."""
        views = self._plan.views
        of_test = self._plan.ends_with(n) and e >= self._plan.validation_batches
        if not of_test or e % views < views - 1:
            return
        own = self._wanted[(self._wanted >= self._seen) & (self._wanted < self._seen + len(output))] - self._seen
        self._seen += len(output)
        if len(own):
            self._kept.append(flat(output[own.to(output.device)]).cpu())

    def take(self) -> Tensor | None:
        """``[M, d]``; None if nothing was wanted."""
        return torch.cat(self._kept) if self._kept else None


def flat(output: Tensor) -> Tensor:
    """Outputs, or images, as ``[M, d]``; feature maps of more than `_MOST_DIMENSIONS` are pooled."""
    output = output.float()
    if output.ndim == 4:
        _, channels, height, width = output.shape
        pool, _ = pooling((channels, height, width), _MOST_DIMENSIONS)
        output = pool(output)
    return output.flatten(1)
