"""Batches that enter the network: their order, inputs at the bottom, with crops and flips, and labels at the top."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import tee
from math import inf
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from counterflow.config import DataConfig
from counterflow.data.augment import augment
from counterflow.data.dataset import Dataset, Rows, Split, chunks, pixel_moments
from counterflow.data.items import EVALUATION, Items
from counterflow.data.keyed_permutation import keyed_permutation
from counterflow.data.reader_pool import ReaderPool, Request
from counterflow.seeding import derive_seed

CPU = torch.device("cpu")
_LARGEST_TABLE = 2**20
"""Samples up to which the order of an epoch is a table in memory."""


Field = Literal["inputs", "labels"]


class BatchKey(NamedTuple):
    """Training batch ``number``, the shard of it that ``replica`` trains on, or evaluation batch."""

    number: int
    evaluation: bool = False
    replica: int | None = None


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
    """Parts of a training batch, or of a shard; an evaluation batch is as large as one."""
    replicas: int = 1
    """Shards of a training batch."""
    workers: ReaderPool | None = None
    """Processes that read the samples that are not in memory; this process reads them if there are none."""
    _placed: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.order.size == len(self.dataset.train)
        if self.config.augment and not self.dataset.train.images:
            raise ValueError(f"data.augment=true: is for images, allowed for data={self.config.name} is false")
        if self.config.workers and not any(isinstance(source, Items) for source in self.sources.values()):
            raise ValueError(
                f"data.workers={self.config.workers}: is for images in files and Datasets, allowed for "
                f"data={self.config.name} is 0"
            )
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

    @property
    def sources(self) -> dict[str, Rows]:
        """The fields of all splits, by the names that requests have for them."""
        splits = {"train": self.dataset.train, "validation": self.dataset.validation, "test": self.dataset.test}
        return {
            f"{name}.{field}": source
            for name, split in splits.items()
            if split is not None
            for field, source in (("inputs", split.inputs), ("labels", split.labels))
        }

    def read_by_workers(self, field: Field) -> bool:
        """Samples of ``field`` are not in memory, and worker processes are to read them."""
        found = (source for name, source in self.sources.items() if name.endswith(field))
        return self.config.workers > 0 and any(isinstance(source, Items) for source in found)

    def stream(self, field: Field, keys: Iterable[BatchKey], expected: Iterable[BatchKey]) -> Iterator[Tensor]:
        """``field`` of the batches ``keys``, in order, as `inputs`, `labels` and the methods of evaluation have them.

        What is not in memory is read some batches ahead, by worker processes.

        Args:
            field: Inputs or labels.
            keys: The batches. The next one may be known late, if a run may end early.
            expected: The same, as far as it is known beforehand: these are read ahead. It never waits.
        """
        if self.workers is None or not self.read_by_workers(field):
            for key in keys:
                yield self._prepared(field, key, self._read(field, key))
            return
        keys = iter(keys)
        ahead, expected = tee(expected)
        with closing(self.workers.read(self._request(field, key) for key in ahead)) as batches:
            for key in keys:
                if key != next(expected, None):
                    break
                yield self._prepared(field, key, next(batches))
            else:
                return
        rest = [key, *keys]  # after an early end, the last evaluation
        for key, batch in zip(rest, self.workers.read(self._request(field, key) for key in rest), strict=True):
            yield self._prepared(field, key, batch)

    def inputs(self, n: int) -> Tensor:
        """Inputs of training batch ``n``: images, normalised and, if configured, augmented, float32 ``[B, C, H, W]``;
        tokens, int64 ``[B, T]``; or numbers, float32 ``[B, ...]``.
        """
        return self._prepared("inputs", BatchKey(n), self._read("inputs", BatchKey(n)))

    def first_inputs(self, most: int) -> Tensor:
        """The first samples of training, up to ``most``, as those of `inputs`, on the CPU: neither shuffled nor
        augmented, the same ones for every seed."""
        rows = chunks(torch.arange(min(most, len(self.dataset.train))))
        return self._normalised(torch.cat(list(self._train_inputs(rows))).cpu())

    @property
    def example(self) -> Tensor:
        """A batch with the type and the shape of `inputs`, on the CPU; zeros if the samples are not in memory."""
        source = self.dataset.train.inputs
        if not isinstance(source, Items):
            return self.inputs(0).cpu()
        dtype = source.dtype if source.dtype == torch.int64 else torch.float32
        return torch.zeros(self.order.batch_size, *source.shape[1:], dtype=dtype)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Those of the data set."""
        if self.workers is None or not self.read_by_workers("inputs"):
            return self.dataset.moments
        return pixel_moments(self._train_inputs(self.dataset.measured))

    def labels(self, n: int) -> Tensor:
        """Labels of training batch ``n``, int64 ``[B]``, or ``[B, T]`` of sequences."""
        return self._read("labels", BatchKey(n))

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
        key = BatchKey(e, evaluation=True)
        return self._prepared("inputs", key, self._read("inputs", key))

    def view(self, e: int) -> View:
        """The view of the images in evaluation batch ``e``."""
        return evaluation_views(self.config.test_views)[e % self.config.test_views]

    def evaluation_labels(self, e: int) -> Tensor:
        """Labels of evaluation batch ``e``, int64 ``[M]``, or ``[M, T]``."""
        return self._read("labels", BatchKey(e, evaluation=True))

    def evaluation_size(self, e: int) -> int:
        """Number of samples in evaluation batch ``e``: those of a part, or fewer in the last batch of a split."""
        _, part = self._part(e)
        return int(part.stop - part.start)

    def plain(self, batches: range) -> list[BatchKey]:
        """Those of the evaluation batches ``batches`` that are in the plain view, one for all views of a sample."""
        return [BatchKey(e, evaluation=True) for e in batches if self.view(e).plain]

    def labels_of(self, batches: range) -> Tensor:
        """Labels of evaluation batches in order, once for all views of a sample: int64 ``[M]``, or ``[M, T]``."""
        none = torch.empty(0, *self.dataset.train.labels.shape[1:], dtype=torch.int64)  # there may be no batches
        return torch.cat([none, *(self._read("labels", key) for key in self.plain(batches))])

    def shape_of_labels(self, batches: range) -> tuple[int, ...]:
        """The shape of `labels_of`, which reads nothing."""
        count = sum(self.evaluation_size(key.number) for key in self.plain(batches))
        return (count, *self.dataset.train.labels.shape[1:])

    def _read(self, field: Field, key: BatchKey) -> Tensor:
        """``field`` of a batch as it is in the data set, read by this process."""
        split, rows, epoch = self._located(key)
        source = split.inputs if field == "inputs" else split.labels
        if isinstance(source, Items):
            return source.rows(rows, epoch)
        if field == "labels" and key.evaluation:
            return source[rows]
        source = self._place(source)
        if isinstance(source, Tensor) and isinstance(rows, Tensor):
            rows = self._indices(key, source.device)
        return source[rows]

    def _request(self, field: Field, key: BatchKey) -> Request:
        split, rows, epoch = self._located(key)
        name = next(name for name, source in self.sources.items() if source is getattr(split, field))
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
        return Request(name, numbers, epoch)

    def _located(self, key: BatchKey) -> tuple[Split, Tensor | slice, int]:
        """The split of a batch, its rows there, and the epoch for which they are read."""
        if key.evaluation:
            return *self._part(key.number), EVALUATION
        return self.dataset.train, self._indices(key), self.order.epoch(key.number)

    def _indices(self, key: BatchKey, device: torch.device = CPU) -> Tensor:
        """Indices of a training batch, or of a shard of it, into the training data."""
        indices = self.order.indices(key.number, device)
        return indices if key.replica is None else indices.chunk(self.replicas)[key.replica]

    def _prepared(self, field: Field, key: BatchKey, batch: Tensor) -> Tensor:
        """``batch`` as it was read, as it enters the network."""
        if field == "labels":
            return batch
        if key.evaluation:
            view = self.view(key.number)
            return self._normalised(batch if view.plain else view.of(batch))
        if self.config.augment:
            batch = augment(
                batch,
                self._indices(key, batch.device),
                seed=self.order.seed,
                epoch=self.order.epoch(key.number),
                size=self.order.size,
                padding=self.config.padding,
                flip=self.config.flip,
                pad=self.config.pad,
                alternate=self.config.alternate,
            )
        return self._normalised(batch)

    def _normalised(self, inputs: Tensor) -> Tensor:
        return self.dataset.normalised(inputs, self.moments if self.dataset.train.images else None)

    def _train_inputs(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Training inputs of ``parts``, rows each, as they are in the data set."""
        if self.workers is not None and self.read_by_workers("inputs"):
            return self.workers.read(Request("train.inputs", rows.numpy(), EVALUATION) for rows in parts)
        return (self.dataset.train.inputs[rows] for rows in parts)

    def _place(self, source: Rows) -> Rows:
        """Return ``source`` on the device if the data is resident; it is moved once, at its first use."""
        if not self.resident or not isinstance(source, Tensor):
            return source
        if id(source) not in self._placed:
            self._placed[id(source)] = source.to(self.device)
        return self._placed[id(source)]

    def _count(self, split: Split | None) -> int:
        return 0 if split is None else -(-len(split) // self._evaluated) * self.config.test_views

    def _part(self, e: int) -> tuple[Split, slice]:
        assert 0 <= e < self.test.stop
        held_out = e in self.validation
        split = self.dataset.validation if held_out else self.dataset.test
        assert split is not None
        batch = (e if held_out else e - self.test.start) // self.config.test_views
        start, size = batch * self._evaluated, self._evaluated
        return split, slice(start, min(start + size, len(split)))

    @property
    def _evaluated(self) -> int:
        """Samples of an evaluation batch."""
        return self.order.batch_size // (self.parts * self.replicas)


# Two entries: a process may hold both ends of the network, which reach the next epoch at different times.
@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch))).to(device)
