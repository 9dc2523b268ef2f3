"""Batches that enter the network: their order, inputs at the bottom, with crops and flips, and labels at the top."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.keyed_permutation import keyed_permutation
from counterflow.data.token_windows import TokenWindows
from counterflow.seeding import derive_seed

CPU = torch.device("cpu")
_LARGEST_TABLE = 2**20
"""Samples up to which the order of an epoch is a table in memory."""


class View(NamedTuple):
    """A view of the images of an evaluation batch, for test-time augmentation."""

    flip: bool
    shift: int
    """Pixels down and to the right; the edge is padded with the image's own pixels, mirrored."""
    weight: int
    """Weight of its scores in the average over all views."""

    @property
    def plain(self) -> bool:
        return not (self.flip or self.shift)

    def of(self, images: Tensor) -> Tensor:
        """``images``, ``[B, C, H, W]``, as this view shows them."""
        if self.shift:
            padded = F.pad(images.float(), (1,) * 4, mode="reflect").to(images.dtype)
            start, (height, width) = 1 - self.shift, images.shape[2:]
            images = padded[:, :, start : start + height, start : start + width]
        return images.flip(3) if self.flip else images


# The test-time augmentation of Jordan (arXiv 2404.00498, section 3.5): flips, and both diagonal shifts by a pixel at
# half of the weight. The plain view comes last, so that an evaluation may end with it, or be of it alone.
_VIEWS = (
    View(False, 1, 1),
    View(True, 1, 1),
    View(False, -1, 1),
    View(True, -1, 1),
    View(True, 0, 2),
    View(False, 0, 2),
)


def evaluation_views(count: int) -> tuple[View, ...]:
    """The views of an image for ``data.test_views=COUNT``, the plain one last."""
    return _VIEWS[len(_VIEWS) - count :]


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
        if self.size > _LARGEST_TABLE:
            positions = torch.arange(start, start + self.batch_size)
            seed = derive_seed(self.seed, "order", self.epoch(n))
            return keyed_permutation(positions, self.size, seed).to(device)
        return _permutation(self.size, self.seed, self.epoch(n), device)[start : start + self.batch_size].clone()


@dataclass(frozen=True, eq=False)
class BatchLoader:
    """Training batches ``n = 0, 1, ..``, and evaluation batches ``e``: those of ``validation``, then of ``test``.

    The same samples have ``data.test_views`` consecutive evaluation batches, a `View` each, the plain one last.

    The methods are pure functions: no bit depends on the order of calls. Raises ``ValueError`` if augmentation is
    configured and the inputs are not images.
    """

    dataset: Dataset
    config: DataConfig
    order: EpochSampler
    device: torch.device = CPU
    """Device on which batches are prepared, if the data fits there."""
    parts: int = 1
    """Parts of a training batch; an evaluation batch is as large as one."""
    _placed: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.order.size == len(self.dataset.train)
        if self.config.augment and not self.dataset.train.images:
            raise ValueError(f"data.augment=true: is for images, allowed for data={self.config.name} is false")
        side = min(self.dataset.train.inputs.shape[2:], default=0)
        if self.config.augment and self.config.pad == "reflect" and self.config.padding >= side:
            raise ValueError(
                f"data.padding={self.config.padding}: must be less than {side}, the image's side, for data.pad=reflect"
            )
        if self.config.test_views > 1 and not (self.dataset.train.images and side > 1):
            raise ValueError(
                f"data.test_views={self.config.test_views}: is for images of at least two pixels a side, allowed for "
                f"data={self.config.name} is 1"
            )

    @cached_property
    def resident(self) -> bool:
        """True if the GPU holds all of the data, which is so if the data takes less than half of its free memory."""
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        inputs = [split.inputs for split in (self.dataset.train, self.dataset.test) if split]
        return sum(tensor.nbytes if isinstance(tensor, Tensor) else inf for tensor in inputs) < free / 2

    def inputs(self, n: int) -> Tensor:
        """Inputs of training batch ``n``: images, normalised and, if configured, augmented, float32 ``[B, C, H, W]``;
        tokens, int64 ``[B, T]``; or numbers, float32 ``[B, ...]``.
        """
        source = self._place(self.dataset.train.inputs)
        indices = self.order.indices(n, _device(source))
        inputs = source[indices]
        if self.config.augment:
            inputs = augment(
                inputs,
                indices,
                seed=self.order.seed,
                epoch=self.order.epoch(n),
                size=self.order.size,
                padding=self.config.padding,
                flip=self.config.flip,
                pad=self.config.pad,
                alternate=self.config.alternate,
            )
        return self.dataset.normalised(inputs)

    def first_inputs(self, most: int) -> Tensor:
        """The first samples of training, up to ``most``, as those of `inputs`, on the CPU: neither shuffled nor
        augmented, the same ones for every seed."""
        return self.dataset.normalised(self.dataset.train.inputs[:most].cpu())

    def labels(self, n: int) -> Tensor:
        """Labels of training batch ``n``, int64 ``[B]``, or ``[B, T]`` of sequences."""
        labels = self._place(self.dataset.train.labels)
        return labels[self.order.indices(n, _device(labels))]

    @property
    def validation(self) -> range:
        """Evaluation batches of the held-out training data."""
        return range(self._count(self.dataset.validation))

    @property
    def test(self) -> range:
        """Evaluation batches of the test data."""
        first = len(self.validation)
        return range(first, first + self._count(self.dataset.test))

    def evaluation_inputs(self, e: int) -> Tensor:
        """Inputs of evaluation batch ``e``, as those of `inputs`, in the view of this batch."""
        split, part = self._part(e)
        inputs, view = self._place(split.inputs)[part], self.view(e)
        return self.dataset.normalised(inputs if view.plain else view.of(inputs))

    def view(self, e: int) -> View:
        """The view of the images in evaluation batch ``e``."""
        return evaluation_views(self.config.test_views)[e % self.config.test_views]

    def evaluation_labels(self, e: int) -> Tensor:
        """Labels of evaluation batch ``e``, int64 ``[M]``, or ``[M, T]``."""
        split, part = self._part(e)
        return split.labels[part]

    def evaluation_size(self, e: int) -> int:
        """Number of samples in evaluation batch ``e``: those of a part, or fewer in the last batch of a split."""
        return len(self.evaluation_labels(e))

    def labels_of(self, batches: range) -> Tensor:
        """Labels of evaluation batches in order, once for all views of a sample: int64 ``[M]``, or ``[M, T]``."""
        none = self.dataset.train.labels[:0]  # there may be no batches
        return torch.cat([none, *(self.evaluation_labels(e) for e in batches if self.view(e).plain)])

    def _place(self, tensor: Tensor | TokenWindows) -> Tensor | TokenWindows:
        """Return ``tensor`` on the device if the data is resident; it is moved once, at its first use."""
        if not self.resident or not isinstance(tensor, Tensor):
            return tensor
        if id(tensor) not in self._placed:
            self._placed[id(tensor)] = tensor.to(self.device)
        return self._placed[id(tensor)]

    def _count(self, split: Split | None) -> int:
        return 0 if split is None else -(-len(split) // self._evaluated) * self.config.test_views

    def _part(self, e: int) -> tuple[Split, slice]:
        assert 0 <= e < self.test.stop
        held_out = e in self.validation
        split = self.dataset.validation if held_out else self.dataset.test
        assert split is not None
        batch = (e if held_out else e - self.test.start) // self.config.test_views
        start = batch * self._evaluated
        return split, slice(start, start + self._evaluated)

    @property
    def _evaluated(self) -> int:
        """Samples of an evaluation batch."""
        return self.order.batch_size // self.parts


def _device(source: Tensor | TokenWindows) -> torch.device:
    return source.device if isinstance(source, Tensor) else CPU


def augment(
    images: Tensor,
    indices: Tensor,
    *,
    seed: int,
    epoch: int,
    size: int,
    padding: int,
    flip: bool,
    pad: str = "zeros",
    alternate: bool = False,
) -> Tensor:
    """Crop images at random after padding, and flip half of them horizontally.

    The crop and the flip of an image depend on (seed, epoch, index) only, never on its batch.

    Args:
        images: uint8 ``[B, C, H, W]``.
        indices: Positions of these images in the training data, int64 ``[B]``.
        seed: Seed of the run.
        epoch: Every epoch has other crops and flips.
        size: Number of training images.
        padding: Pixels on every side before the crop; with ``reflect`` fewer than the image has.
        flip: Flips are made.
        pad: ``zeros``, or ``reflect``: the image's own pixels, mirrored at its edge.
        alternate: An image is flipped in every second epoch, beginning with the first or the second: the alternating
            flips of Jordan (arXiv 2404.00498, section 3.6).
    """
    device = images.device
    top, left, mirrored = (table[indices, None] for table in _tables(seed, epoch, size, padding, device))
    channels, height, width = images.shape[1:]
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        if alternate:
            mirrored = _first_flips(seed, size, device)[indices, None] ^ (epoch % 2 == 1)
        columns = columns.flip(1).where(mirrored, columns)
    if pad == "reflect":
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
    else:
        images = F.pad(images, (padding,) * 4)
    return images[
        torch.arange(len(images), device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _reflected(positions: Tensor, side: int) -> Tensor:
    """Positions in ``0 .. side - 1`` for those up to ``side - 1`` beyond either edge, which is not repeated."""
    return side - 1 - (side - 1 - positions.abs()).abs()


@lru_cache(maxsize=1)
def _first_flips(seed: int, size: int, device: torch.device) -> Tensor:
    """Images that the first epoch flips if flips alternate, bool ``[size]``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "flips"))
    return torch.randint(2, (size,), generator=generator).bool().to(device)


@lru_cache(maxsize=1)
def _tables(seed: int, epoch: int, size: int, padding: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Top row and left column of every crop, int64 in ``0..2 * padding``, and flips, bool; ``[size]`` each."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    top, left = torch.randint(2 * padding + 1, (2, size), generator=generator)
    mirrored = torch.randint(2, (size,), generator=generator).bool()
    return top.to(device), left.to(device), mirrored.to(device)


# Two entries: a process may hold both ends of the network, which reach the next epoch at different times.
@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))).to(device)
