"""What enters the network: inputs at the bottom, labels at the top."""

from dataclasses import dataclass

from torch import Tensor

from counterflow.config import DataConfig
from counterflow.data.augment import augment
from counterflow.data.dataset import Dataset
from counterflow.data.order import Order


@dataclass(frozen=True, eq=False)
class Batches:
    """Training batches ``n = 0, 1, ..`` and test batches ``e = 0..test_batches-1``.

    Pure functions of their arguments: no bit depends on the order of calls. ``ValueError`` where sequences are to be
    augmented.
    """

    dataset: Dataset
    config: DataConfig
    order: Order

    def __post_init__(self) -> None:
        assert self.order.size == len(self.dataset.train)
        if self.config.augment and self.dataset.train.sequences:
            raise ValueError(f"data.augment=true: is for images, allowed for data={self.config.name} is false")

    def inputs(self, n: int) -> Tensor:
        """Inputs of training batch ``n``: images, normalised and, if configured, augmented, float32 ``[B, C, H, W]``;
        or tokens, int64 ``[B, T]``.
        """
        indices = self.order.indices(n)
        inputs = self.dataset.train.inputs[indices]
        if self.config.augment:
            inputs = augment(
                inputs,
                indices,
                seed=self.order.seed,
                epoch=self.order.epoch(n),
                size=self.order.size,
                padding=self.config.padding,
                flip=self.config.flip,
            )
        return self.dataset.normalised(inputs)

    def labels(self, n: int) -> Tensor:
        """Labels of training batch ``n``, int64 ``[B]``, or ``[B, T]`` of sequences."""
        return self.dataset.train.labels[self.order.indices(n)]

    @property
    def test_batches(self) -> int:
        return -(-len(self.dataset.test) // self.order.batch_size)

    def test_inputs(self, e: int) -> Tensor:
        """Inputs of test batch ``e``: images, normalised, float32 ``[test_size(e), C, H, W]``; or tokens."""
        start = e * self.order.batch_size
        return self.dataset.normalised(self.dataset.test.inputs[start : start + self.test_size(e)])

    def test_size(self, e: int) -> int:
        """Samples in test batch ``e``: the batch size, or fewer in the last one."""
        assert 0 <= e < self.test_batches
        return min(self.order.batch_size, len(self.dataset.test) - e * self.order.batch_size)

    def test_labels(self, e: int) -> Tensor:
        """Labels of test batch ``e``, int64 ``[test_size(e)]``, or ``[test_size(e), T]``."""
        start = e * self.order.batch_size
        return self.dataset.test.labels[start : start + self.test_size(e)]

    def all_test_labels(self) -> Tensor:
        """Labels of all test batches, one after the other: int64 ``[M]``, or ``[M, T]``."""
        return self.dataset.test.labels
