"""Layout of a message in one buffer, and the copies between buffers and the device.

The kinds of buffers are CPU over gloo, CUDA over gloo, and CUDA over NCCL.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.message import HEADER_BYTES
from counterflow.transport.channel import Payload
from counterflow.transport.cuda_device import CudaDevice, DeviceEvent

_ALIGNMENT = 64
_LARGE = 1 << 21
"""Bytes from which a tensor is a message of its own: to copy it into the buffer takes as long as sending it."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class MessageLayout:
    """Layout of messages of ``specs`` in a uint8 buffer of at least ``nbytes`` bytes.

    The header comes first, then every tensor on a 64-byte boundary, large ones last. A tensor in a received buffer is
    aligned as a fresh one is: vectorised kernels may round differently at other addresses, and a run must give the same
    bits whether a message crosses a process or not.
    """

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        self.large = tuple(i for i, spec in enumerate(self.specs) if spec.nbytes >= _LARGE)
        """Indices of the large tensors, which are sent separately."""
        self.nbytes = self.head = HEADER_BYTES
        """Bytes of the whole message, and of the header and all tensors that are not large."""
        offsets: dict[int, int] = {}
        for i in sorted(range(len(self.specs)), key=lambda i: i in self.large):
            offsets[i] = self.nbytes
            self.nbytes += math.ceil(self.specs[i].nbytes / _ALIGNMENT) * _ALIGNMENT
            if i not in self.large:
                self.head = self.nbytes
        self.offsets = tuple(offsets[i] for i in range(len(self.specs)))
        self.pieces = (slice(0, self.head), *(slice(offsets[i], offsets[i] + self.specs[i].nbytes) for i in self.large))
        """Slices of the buffer that are sent separately: the head, and every large tensor."""

    @property
    def payload_nbytes(self) -> int:
        return self.nbytes - HEADER_BYTES

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Raise ``ValueError`` unless ``tensors`` match the layout: the receiver has posted buffers of its sizes."""
        found = tuple(TensorSpec.of(tensor) for tensor in tensors)
        if found != self.specs:
            raise ValueError(f"a message of {_text(found)} where {_text(self.specs)} was agreed")

    def views(self, buffer: Tensor) -> Payload:
        """Tensors of the message in ``buffer``, without a copy."""
        return tuple(self.view(buffer, i) for i in range(len(self.specs)))

    def view(self, buffer: Tensor, i: int) -> Tensor:
        """Tensor ``i`` of the message in ``buffer``, without a copy."""
        spec, start = self.specs[i], self.offsets[i]
        return buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)


def _text(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{str(spec.dtype).removeprefix('torch.')}{list(spec.shape)}" for spec in specs) or "nothing"


Loaded = tuple[Sequence[Tensor], DeviceEvent | None]
"""Pieces of a message, and the event after which they are written; None if they are written already."""


class MessageBuffers:
    """Buffers of one kind; as they stand here, of CPU tensors over gloo.

    `write` and `load` run on the thread that computes, all other methods on any thread.
    """

    starts_at_once = True
    """True if `send` does not wait, so that the thread that computes may call it."""

    def buffer(self, nbytes: int) -> Tensor:
        """A uint8 buffer for messages of up to ``nbytes`` bytes."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> DeviceEvent | None:
        """Copy a message into ``buffer``; return the event after which it is written, None if it is written already."""
        _write_header(buffer, header)
        for view, tensor in zip(layout.views(buffer), tensors, strict=True):
            view.copy_(tensor, non_blocking=True)
        return None

    def load_nbytes(self, layout: MessageLayout) -> int:
        """Bytes of the buffer that `load` needs."""
        return layout.head

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        """Prepare a message in ``buffer``, or in ``tensors`` themselves, which must then stay unchanged until sent."""
        _write_header(buffer, header)
        for i, tensor in enumerate(tensors):
            if i not in layout.large:
                layout.view(buffer, i).copy_(tensor)
        return [buffer[layout.pieces[0]], *(tensors[i].contiguous() for i in layout.large)], None

    def send(self, piece: Tensor, written: DeviceEvent | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        """Start to send ``piece`` of a message to ``rank``, after the event ``written``."""
        return started(dist.isend(piece, rank, group=group))

    def complete(self, work: dist.Work, timeout: float) -> None:
        """Block this thread until ``work`` is done; ``RuntimeError`` if it fails or takes more than ``timeout`` s."""
        work.wait(timedelta(seconds=timeout))

    def header(self, buffer: Tensor) -> bytes:
        """Header of a received message."""
        return bytes(buffer[:HEADER_BYTES].numpy())

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        """Tensors of a received message, on the device where blocks compute."""
        return layout.views(buffer)


def _write_header(buffer: Tensor, header: bytes) -> None:
    buffer.numpy()[:HEADER_BYTES] = np.frombuffer(header, np.uint8)


class CpuGloo(MessageBuffers):
    """CPU tensors over gloo."""


class _Cuda(MessageBuffers):
    """Base of the kinds for CUDA tensors, which copy whole messages into their buffers before they send."""

    starts_at_once = False

    def __init__(self, device: CudaDevice) -> None:
        self._device = device

    def write(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> DeviceEvent:
        self._write_header(buffer, header)
        for view, tensor in zip(layout.views(buffer), tensors, strict=True):
            self._device.copy(view, tensor)
        return self._device.record()

    def load_nbytes(self, layout: MessageLayout) -> int:
        return layout.nbytes

    def load(self, buffer: Tensor, layout: MessageLayout, header: bytes, tensors: Payload) -> Loaded:
        written = self.write(buffer, layout, header, tensors)
        return [buffer[piece] for piece in layout.pieces], written

    def _write_header(self, buffer: Tensor, header: bytes) -> None:
        _write_header(buffer, header)


class CudaGloo(_Cuda):
    """CUDA tensors over gloo, which cannot send device memory: they are staged in pinned host memory."""

    def buffer(self, nbytes: int) -> Tensor:
        return self._device.pinned(nbytes)

    def send(self, piece: Tensor, written: DeviceEvent | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        written.synchronize()
        return super().send(piece, written, rank, group)

    def read(self, buffer: Tensor, layout: MessageLayout) -> Payload:
        with self._device.aside():
            tensors = tuple(self._device.upload(view) for view in layout.views(buffer))
            # After this wait, any stream may use the copies, and the buffer is free again.
            self._device.synchronize()
        for tensor in tensors:
            self._device.lend(tensor)
        return tensors


class CudaNccl(_Cuda):
    """CUDA tensors over NCCL, whose ``Work.wait`` orders streams and does not block the host."""

    def buffer(self, nbytes: int) -> Tensor:
        return self._device.memory(nbytes)

    def _write_header(self, buffer: Tensor, header: bytes) -> None:
        # Not `Tensor.copy_` as it is: that waits for all that the blocks have started.
        self._device.copy(buffer[:HEADER_BYTES], torch.frombuffer(bytearray(header), dtype=torch.uint8))

    def send(self, piece: Tensor, written: DeviceEvent | None, rank: int, group: dist.ProcessGroup) -> dist.Work:
        assert written is not None
        with self._device.aside():
            self._device.wait(written)
            return super().send(piece, written, rank, group)

    def complete(self, work: dist.Work, timeout: float) -> None:
        # To wait on a stream before the operation is over would hold up the sends of all other edges behind it, and
        # with them the messages for which the peer has to wait before it sends this one.
        deadline = time.monotonic() + timeout
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no completion within {timeout:g} s")
            time.sleep(5e-5)
        with self._device.aside():
            work.wait()  # raises the error that ended the operation

    def header(self, buffer: Tensor) -> bytes:
        with self._device.aside():
            return super().header(self._device.download(buffer[:HEADER_BYTES]))


def make_buffers(backend: str, device: torch.device) -> MessageBuffers:
    """Buffers for a process group's ``backend`` and the device where blocks compute."""
    if device.type == "cpu":
        return CpuGloo()
    return (CudaNccl if backend == "nccl" else CudaGloo)(CudaDevice(device))


def started(work: dist.Work | None) -> dist.Work:
    """``work`` of an operation on a group; torch returns None to processes outside of it."""
    assert work is not None, "only the two ranks of an edge use its group"
    return work
