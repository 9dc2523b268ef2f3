"""Memory tracker: bytes that a process keeps for its backward passes, of its message buffers, and of stashed weights.

Not counted: parameters, their gradients and the optimizer's state, which are the same under every schedule, and tensors
that live within one operation.
"""

import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from counterflow.algorithms import weight_stashing
from counterflow.bench.case import BenchmarkCase, RankMeasurement, train
from counterflow.transport import Communicator
from counterflow.transport.buffers import CpuGloo, CudaGloo, CudaNccl

_Key = tuple[int, int]
"""Address and bytes of a storage."""


class LiveBytes:
    """Bytes of the storages in use. A storage counts once and as a whole, however many tensors share it.

    One thread may call `hold`. Any thread may call `drop`, and so may destructors, which run in the middle of anything.
    """

    def __init__(self) -> None:
        self.peak = 0
        """The largest number of bytes so far."""
        self._holders = Counter[_Key]()
        self._dropped: deque[_Key] = deque()

    @property
    def live(self) -> int:
        """Bytes in use now."""
        while self._dropped:
            self._holders[self._dropped.popleft()] -= 1
        self._holders = +self._holders  # without those that nobody holds
        return sum(nbytes for _, nbytes in self._holders)

    def hold(self, storage: UntypedStorage) -> _Key:
        """Count a holder of ``storage``. Returns the key for `drop`, to be called once for every `hold`, while the
        storage still exists."""
        key = storage._cdata, storage.nbytes()
        self._holders[key] += 1
        self.peak = max(self.peak, self.live)
        return key

    def drop(self, key: _Key) -> None:
        self._dropped.append(key)

    def holds(self, storage: UntypedStorage) -> bool:
        return self.live > 0 and (storage._cdata, storage.nbytes()) in self._holders


class MemoryTracker:
    """Counts saved tensors, message buffers and stashed weights of this process."""

    def __init__(self) -> None:
        self.saved = LiveBytes()
        """Tensors saved by autograd, the network's inputs included."""
        self.messages = LiveBytes()
        """Message buffers, from their allocation until their last reference is gone."""
        self.stashes = LiveBytes()
        """Weights that are kept beside those of the block, under ``schedule=pipedream``."""
        self.all = LiveBytes()
        """The union of all: a storage that is in several counts once."""

    def count_saved(self) -> saved_tensors_hooks:
        """A context that counts the tensors that autograd saves for operations of this thread within it."""
        return saved_tensors_hooks(self._pack, lambda saved: saved)

    def count_message(self, buffer: Tensor) -> None:
        """Count ``buffer`` as one that holds messages."""
        storage = buffer.untyped_storage()
        _hold_while_alive(storage, storage, self.messages, self.all)

    def count_stash(self, weights: Mapping[str, Tensor]) -> None:
        """Count the copies ``weights``; autograd saves them, too, and they do not count as saved tensors."""
        for weight in weights.values():
            storage = weight.untyped_storage()
            _hold_while_alive(storage, storage, self.stashes, self.all)

    def _pack(self, tensor: Tensor) -> Tensor:
        # A view of a parameter, such as a transposed weight, takes no memory either.
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            return tensor
        if self.stashes.holds(tensor.untyped_storage()):
            return tensor
        saved = tensor.detach()  # with its history, the output of a node would keep that node alive
        _hold_while_alive(saved, tensor.untyped_storage(), self.saved, self.all)
        return saved


def _hold_while_alive(owner: object, storage: UntypedStorage, *counters: LiveBytes) -> None:
    """Count ``storage`` until ``owner`` is destroyed."""
    for counter in counters:
        weakref.finalize(owner, counter.drop, counter.hold(storage)).atexit = False


def watch_buffers(note: Callable[[Tensor], object]) -> None:
    """Call ``note`` with every message buffer from now on, until this process ends.

    These are the buffers that channels allocate, the tensors that channels send without a copy, and the tensors that
    torch's pipeline schedules send or receive into.
    """
    for medium in (CpuGloo, CudaGloo, CudaNccl):
        _call_after(medium, "buffer", lambda buffer, *_: note(buffer))
        _call_after(medium, "load", lambda loaded, *_: [note(piece) for piece in loaded[0]])
    _call_after(dist.P2POp, "__init__", lambda _, made, *__: note(made.tensor))


def watch_stashes(note: Callable[[Mapping[str, Tensor]], object]) -> None:
    """Call ``note`` with every copy of weights that a block stashes from now on, until this process ends."""
    _call_after(weight_stashing, "stash", lambda weights, *_: note(weights))


def _call_after(owner: Any, name: str, hook: Callable[..., object]) -> None:
    """Replace method ``name`` by one that calls ``hook(result, self, *args)`` as well."""
    method = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        hook(result, *args)
        return result

    setattr(owner, name, wrapped)


@dataclass(frozen=True)
class MemoryMeasurement:
    """Peaks of one rank, in bytes."""

    rank: RankMeasurement
    saved: int
    messages: int
    stashes: int
    all: int


def train_tracked(comm: Communicator, case: BenchmarkCase) -> MemoryMeasurement:
    """`train` with a memory tracker around the unchanged engine."""
    tracker = MemoryTracker()
    watch_buffers(tracker.count_message)
    watch_stashes(tracker.count_stash)
    with tracker.count_saved():
        rank = train(comm, case)
    peaks = (counter.peak for counter in (tracker.saved, tracker.messages, tracker.stashes, tracker.all))
    return MemoryMeasurement(rank, *peaks)
