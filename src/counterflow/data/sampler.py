"""Order of the training data."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from counterflow.seeding import derive_seed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class EpochSampler:
    """Sampler whose every epoch is a new permutation of ``size`` indices, cut into full batches.

    The remainder of an epoch is dropped. The indices are a pure function of (seed, batch). Raises ``ValueError`` if
    ``batch_size`` exceeds ``size``.
    """

    size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.size:
            raise ValueError(
                f"train.batch_size={self.batch_size}: must be at most {self.size}, the size of the training data"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def epoch(self, n: int) -> int:
        """Epoch of batch ``n``."""
        assert n >= 0
        return n // self.steps_per_epoch

    def indices(self, n: int, device: torch.device = CPU) -> Tensor:
        """Indices of batch ``n`` into the training data, int64 ``[batch_size]``."""
        start = n % self.steps_per_epoch * self.batch_size
        return _permutation(self.size, self.seed, self.epoch(n), device)[start : start + self.batch_size].clone()


# Two entries: a process may hold both ends of the network, which reach the next epoch at different times.
@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))).to(device)
