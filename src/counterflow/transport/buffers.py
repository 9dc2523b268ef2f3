"""Where a message's bytes lie and how they get between device and wire: the three ways of torch.distributed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.message import HEADER_BYTES
from counterflow.transport.channel import Payload
from counterflow.transport.message_layout import MessageLayout

Loaded = tuple[Sequence[Tensor], torch.cuda.Event | None]
"""The pieces of a message, and when they are there."""


class MessageBuffers(Protocol):
    """Buffers of one kind. `write` and `load` run on the thread that computes, everything else may run on another."""

    starts_at_once: bool
    """Whether `send` waits for nothing, so that the thread that computes may call it."""

    def buffer(self, nbytes: int) -> Tensor:
        """A uint8 buffer for messages of up to ``nbytes`` bytes."""

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event | None:
        """Copy a message into ``buffer``; the event says when it is there."""

    def room(self, layout: MessageLayout) -> int:
        """Bytes of a buffer that `load` needs."""

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        """Have a message ready in ``buffer``, or in ``tensors`` themselves, whose owner leaves them as they are."""

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        """Start to send ``piece`` of a message once it is written."""

    def complete(self, work: dist.Work, timeout: float) -> None:
        """Block this thread until ``work`` is done; raises ``RuntimeError`` when it fails or ``timeout`` s are over."""

    def header(self, buffer: Tensor) -> bytes:
        """The header of a received message."""

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        """The tensors of a received message on the device where blocks compute."""


def _host_header(buffer: Tensor) -> bytes:
    return bytes(buffer[:HEADER_BYTES].numpy())


def _label(buffer: Tensor, header: bytes) -> None:
    # A staged header is copied while this process still holds the bytes: it lies in the host's memory on both sides.
    if buffer.is_cuda:
        buffer[:HEADER_BYTES].copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))
    else:
        buffer.numpy()[:HEADER_BYTES] = np.frombuffer(header, np.uint8)


def _write(buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> None:
    _label(buffer, header)
    for view, tensor in zip(layout.views(buffer), tensors, strict=True):
        view.copy_(tensor, non_blocking=True)


class _Copying(ABC):
    """What media share that send nothing but their buffers."""

    @abstractmethod
    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event: ...

    def room(self, layout: MessageLayout) -> int:
        return layout.nbytes

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        written = self.write(buffer, layout, header, tensors)
        return [buffer[piece] for piece in layout.pieces], written


class _Gloo:
    """What both media in host memory share."""

    def complete(self, work: dist.Work, timeout: float) -> None:
        work.wait(timedelta(seconds=timeout))

    def header(self, buffer: Tensor) -> bytes:
        return _host_header(buffer)


class CpuGloo(_Gloo):
    """CPU tensors over gloo."""

    starts_at_once = True

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> None:
        _write(buffer, layout, header, tensors)

    def room(self, layout: MessageLayout) -> int:
        return layout.head

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        _label(buffer, header)
        for i, tensor in enumerate(tensors):
            if i not in layout.large:
                layout.view(buffer, i).copy_(tensor)
        return [buffer[layout.pieces[0]], *(tensors[i].contiguous() for i in layout.large)], None

    def send(self, piece: Tensor, written: object, rank: int, group: dist.ProcessGroup) -> dist.Work:
        return posted(dist.isend(piece, rank, group=group))

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        return layout.views(buffer)


class CudaGloo(_Copying, _Gloo):
    """CUDA tensors over gloo, which moves no device memory: staged through pinned host memory."""

    starts_at_once = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event:
        _write(buffer, layout, header, tensors)
        written: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return written

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        written.synchronize()
        return posted(dist.isend(piece, rank, group=group))

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        with torch.cuda.stream(self._stream):
            tensors = tuple(view.to(self.device, non_blocking=True) for view in layout.views(buffer))
        # Once this thread has seen the copies end, any stream may use them and the buffer is free again.
        self._stream.synchronize()
        for tensor in tensors:
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return tensors


class CudaNccl(_Copying):
    """CUDA tensors over NCCL, whose ``Work.wait`` orders streams and does not block the host."""

    starts_at_once = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event:
        _write(buffer, layout, header, tensors)
        written: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return written

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(written)
            return posted(dist.isend(piece, rank, group=group))

    def complete(self, work: dist.Work, timeout: float) -> None:
        with torch.cuda.stream(self._stream):
            work.wait()
            done = self._stream.record_event()
        deadline = time.monotonic() + timeout
        while not done.query():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no completion within {timeout:g} s")
            time.sleep(5e-5)

    def header(self, buffer: Tensor) -> bytes:
        with torch.cuda.stream(self._stream):
            return _host_header(buffer[:HEADER_BYTES].cpu())

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        return layout.views(buffer)


def medium(backend: str, device: torch.device) -> MessageBuffers:
    """The medium for a process group's ``backend`` and the device where blocks compute."""
    if device.type == "cpu":
        return CpuGloo()
    return CudaNccl(device) if backend == "nccl" else CudaGloo(device)


def posted(work: dist.Work | None) -> dist.Work:
    """``work`` of an operation in whose group this process is."""
    assert work is not None, "only ranks of an edge use its group"
    return work
