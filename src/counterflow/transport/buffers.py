"""Buffers of messages, and the copies between them and the device: CPU over gloo, CUDA over gloo, CUDA over NCCL."""

import time
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
"""Pieces of a message, and the event after which they are written; None if they are written already."""


class MessageBuffers(Protocol):
    """Buffers of one kind. `write` and `load` run on the thread that computes, all other methods on any thread."""

    starts_at_once: bool
    """True if `send` does not wait, so that the thread that computes may call it."""

    def buffer(self, nbytes: int) -> Tensor:
        """A uint8 buffer for messages of up to ``nbytes`` bytes."""

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event | None:
        """Copy a message into ``buffer``; return the event after which it is written, None if it is written already."""

    def load_nbytes(self, layout: MessageLayout) -> int:
        """Bytes of the buffer that `load` needs."""

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        """Prepare a message in ``buffer``, or in ``tensors`` themselves, which must then stay unchanged until sent."""

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        """Start to send ``piece`` of a message to ``rank``, after the event ``written``."""

    def complete(self, work: dist.Work, timeout: float) -> None:
        """Block this thread until ``work`` is done; ``RuntimeError`` if it fails or takes more than ``timeout`` s."""

    def header(self, buffer: Tensor) -> bytes:
        """Header of a received message."""

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        """Tensors of a received message, on the device where blocks compute."""


def _host_header(buffer: Tensor) -> bytes:
    return bytes(buffer[:HEADER_BYTES].numpy())


def _write_header(buffer: Tensor, header: bytes) -> None:
    if buffer.is_cuda:
        buffer[:HEADER_BYTES].copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))
    else:
        buffer.numpy()[:HEADER_BYTES] = np.frombuffer(header, np.uint8)


def _write(buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> None:
    _write_header(buffer, header)
    for view, tensor in zip(layout.views(buffer), tensors, strict=True):
        view.copy_(tensor, non_blocking=True)


class _Gloo:
    """Base of the kinds with buffers in host memory."""

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

    def load_nbytes(self, layout: MessageLayout) -> int:
        return layout.head

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        _write_header(buffer, header)
        for i, tensor in enumerate(tensors):
            if i not in layout.large:
                layout.view(buffer, i).copy_(tensor)
        return [buffer[layout.pieces[0]], *(tensors[i].contiguous() for i in layout.large)], None

    def send(self, piece: Tensor, written: object, rank: int, group: dist.ProcessGroup) -> dist.Work:
        return started(dist.isend(piece, rank, group=group))

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        return layout.views(buffer)


class _Cuda:
    """Base of the kinds for CUDA tensors, which copy whole messages into their buffers before they send."""

    starts_at_once = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> torch.cuda.Event:
        _write(buffer, layout, header, tensors)
        written: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return written

    def load_nbytes(self, layout: MessageLayout) -> int:
        return layout.nbytes

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        written = self.write(buffer, layout, header, tensors)
        return [buffer[piece] for piece in layout.pieces], written


class CudaGloo(_Cuda, _Gloo):
    """CUDA tensors over gloo, which cannot send device memory: they are staged in pinned host memory."""

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        written.synchronize()
        return started(dist.isend(piece, rank, group=group))

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        with torch.cuda.stream(self._stream):
            tensors = tuple(view.to(self.device, non_blocking=True) for view in layout.views(buffer))
        # After this wait, any stream may use the copies, and the buffer is free again.
        self._stream.synchronize()
        for tensor in tensors:
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return tensors


class CudaNccl(_Cuda):
    """CUDA tensors over NCCL, whose ``Work.wait`` orders streams and does not block the host."""

    def buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def send(self, piece: Tensor, written: torch.cuda.Event | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(written)
            return started(dist.isend(piece, rank, group=group))

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


def make_buffers(backend: str, device: torch.device) -> MessageBuffers:
    """Buffers for a process group's ``backend`` and the device where blocks compute."""
    if device.type == "cpu":
        return CpuGloo()
    return CudaNccl(device) if backend == "nccl" else CudaGloo(device)


def started(work: dist.Work | None) -> dist.Work:
    """``work`` of an operation on a group; torch returns None to processes outside of it."""
    assert work is not None, "only the two ranks of an edge use its group"
    return work
