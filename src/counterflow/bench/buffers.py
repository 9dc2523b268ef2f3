"""The buffers in which messages lie: those of channels, and those of torch's pipeline schedules."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from counterflow.transport.buffers import CpuGloo, CudaGloo, CudaNccl, Loaded

_MEDIA: tuple[Any, ...] = (CpuGloo, CudaGloo, CudaNccl)
_OPERATION: Any = dist.P2POp


def watch_buffers(note: Callable[[Tensor], None]) -> None:
    """From now on, until this process ends, ``note`` is told of every buffer that a channel makes, of every tensor that
    it sends as it is, and of every tensor that a pipeline schedule sends or receives into."""
    for medium in _MEDIA:
        medium.buffer = _telling(medium.buffer, note)
        medium.load = _telling_of_pieces(medium.load, note)
    begin = _OPERATION.__init__

    def initialise(operation: dist.P2POp, *args: Any, **kwargs: Any) -> None:
        begin(operation, *args, **kwargs)
        note(operation.tensor)

    _OPERATION.__init__ = initialise


def _telling_of_pieces(load: Callable[..., Loaded], note: Callable[[Tensor], None]) -> Callable[..., Loaded]:
    def loading(*args: Any) -> Loaded:
        loaded = load(*args)
        for piece in loaded[0]:
            note(piece)
        return loaded

    return loading


def _telling(make: Callable[[Any, int], Tensor], note: Callable[[Tensor], None]) -> Callable[[Any, int], Tensor]:
    def buffer(medium: Any, nbytes: int) -> Tensor:
        made = make(medium, nbytes)
        note(made)
        return made

    return buffer
