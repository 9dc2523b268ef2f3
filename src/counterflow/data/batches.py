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

    Pure functions of their arguments: no bit depends on the order of calls.
    """

    dataset: Dataset
    config: DataConfig
    order: Order

    def __post_init__(self) -> None:
        assert self.order.size == len(self.dataset.train)

    def inputs(self, n: int) -> Tensor:
        """Training images of batch ``n``, normalised and, if configured, augmented: float32 ``[B, C, H, W]``."""
        indices = self.order.indices(n)
        images = self.dataset.train.images[indices]
        if self.config.augment:
            images = augment(
                images,
                indices,
                seed=self.order.seed,
                epoch=self.order.epoch(n),
                size=self.order.size,
                padding=self.config.padding,
                flip=self.config.flip,
            )
        return self._normalised(images)

    def labels(self, n: int) -> Tensor:
        """Labels of training batch ``n``, int64 ``[B]``."""
        return self.dataset.train.labels[self.order.indices(n)]

    @property
    def test_batches(self) -> int:
        return -(-len(self.dataset.test) // self.order.batch_size)

    def test_inputs(self, e: int) -> Tensor:
        """Normalised images of test batch ``e``, float32 ``[test_size(e), C, H, W]``."""
        start = e * self.order.batch_size
        return self._normalised(self.dataset.test.images[start : start + self.test_size(e)])

    def test_size(self, e: int) -> int:
        """Images in test batch ``e``: the batch size, or fewer in the last one."""
        assert 0 <= e < self.test_batches
        return min(self.order.batch_size, len(self.dataset.test) - e * self.order.batch_size)

    def test_labels(self, e: int) -> Tensor:
        """Labels of test batch ``e``, int64 ``[test_size(e)]``."""
        start = e * self.order.batch_size
        return self.dataset.test.labels[start : start + self.test_size(e)]

    def all_test_labels(self) -> Tensor:
        """Labels of all test batches, one after the other: int64 ``[M_test]``."""
        return self.dataset.test.labels

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.dataset.mean[:, None, None]) / self.dataset.std[:, None, None]
