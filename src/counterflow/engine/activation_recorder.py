"""What a block puts out for a few test samples, kept for those who look into a trained network."""

import torch
from torch import Tensor

from counterflow.models.head import pooling
from counterflow.schedule import RunPlan

_MOST_DIMENSIONS = 4096
"""Feature maps are pooled to at most so many: whole ones of a large network would not fit into memory."""


class ActivationRecorder:
    """The outputs of one block for the first ``most`` test samples after the last batch."""

    def __init__(self, most: int, plan: RunPlan) -> None:
        self._most = most
        self._plan = plan
        self._kept: list[Tensor] = []

    def offer(self, n: int, e: int, output: Tensor) -> None:
        """Keep of ``output``, of evaluation batch ``e`` after batch ``n``, what is still wanted."""
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
