"""What a process keeps for its backward passes, and what its messages lie in, byte by byte.

Not counted: parameters, their gradients and the optimizer's state, which are the same under every schedule, and what
lives within one operation alone.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from counterflow.bench.buffers import watch_buffers
from counterflow.bench.contender import Contender, Reading, train
from counterflow.bench.ledger import CheckpointCommitter
from counterflow.transport import Communicator


class _Kept:
    """A tensor in the hands of autograd, which lets go of it after the backward pass."""

    __slots__ = ("_key", "_ledgers", "tensor")

    def __init__(self, tensor: Tensor, ledgers: Sequence[CheckpointCommitter]) -> None:
        self.tensor = tensor.detach()  # with its history, what a node puts out would keep that node
        self._ledgers = ledgers
        (self._key,) = {ledger.hold(tensor.untyped_storage()) for ledger in ledgers}

    def __del__(self) -> None:
        for ledger in self._ledgers:
            ledger.drop(self._key)


class Accounts:
    def __init__(self) -> None:
        self.saved = CheckpointCommitter()
        """What autograd keeps, inputs of the network included."""
        self.messages = CheckpointCommitter()
        """Buffers of messages, from the moment when they are made, as long as anybody has them."""
        self.all = CheckpointCommitter()
        """Both, and what is in both once."""

    def saving(self) -> saved_tensors_hooks:
        """A context: of what is computed in it, by this thread, autograd keeps what is accounted for here."""
        return saved_tensors_hooks(self._pack, _unpack)

    def message(self, buffer: Tensor) -> None:
        """``buffer`` is, or will be, a message, or some."""
        storage = buffer.untyped_storage()
        for ledger in (self.messages, self.all):
            weakref.finalize(storage, ledger.drop, ledger.hold(storage)).atexit = False

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        # A view of a parameter, such as a transposed weight, takes no memory either.
        whole = tensor if tensor._base is None else tensor._base
        return tensor if isinstance(whole, nn.Parameter) else _Kept(tensor, (self.saved, self.all))


def _unpack(packed: Tensor | _Kept) -> Tensor:
    return packed.tensor if isinstance(packed, _Kept) else packed


@dataclass(frozen=True)
class Held:
    """Bytes that one rank held at its peaks."""

    reading: Reading
    saved: int
    messages: int
    all: int


def account(comm: Communicator, contender: Contender) -> Held:
    """A run whose engine does not know that somebody counts."""
    accounts = Accounts()
    watch_buffers(accounts.message)
    with accounts.saving():
        reading = train(comm, contender)
    return Held(reading, accounts.saved.peak, accounts.messages.peak, accounts.all.peak)
