"""CUDA device as messages and traces use it: memory, copies, events and two streams.

All that transport and traces ask of the driver is here, without a decision, so that tests put another device in its
place, which runs every operation as late as events allow (``tests/helpers/fake_device.py``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor


class DeviceEvent(Protocol):
    """Point in the work of a stream."""

    def query(self) -> bool:
        """True once all work before it is done."""
        ...

    def synchronize(self) -> None:
        """Block this thread until all work before it is done."""

    def elapsed_time(self, end_event: "DeviceEvent") -> float:
        """Milliseconds on the device from this event to a later one, both done and made by `CudaDevice.stamp`."""
        ...


class CudaDevice:
    """One GPU. Blocks compute on the stream that is current when this is made, which is CUDA's default stream.

    A thread's operations go to its current stream: that of the blocks, or within `aside` another one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._compute = torch.cuda.current_stream(device)
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pinned(self, nbytes: int) -> Tensor:
        """A uint8 buffer in pinned host memory, of this device's context."""
        with torch.cuda.device(self.device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def memory(self, nbytes: int) -> Tensor:
        """A uint8 buffer on the device."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy after all work so far of this thread's stream. A ``source`` in pageable memory is read at once."""
        target.copy_(source, non_blocking=True)

    def upload(self, source: Tensor) -> Tensor:
        """A new tensor on the device, written like a `copy` of ``source`` in pinned memory."""
        return source.to(self.device, non_blocking=True)

    def download(self, source: Tensor) -> Tensor:
        """``source`` in host memory, after all work so far of this thread's stream, for which this thread waits."""
        return source.cpu()

    def lend(self, tensor: Tensor) -> None:
        """Let blocks use ``tensor``, made `aside`: its memory is not used again before their work so far is done."""
        tensor.record_stream(self._compute)

    def record(self) -> DeviceEvent:
        """An event after all work so far of this thread's stream; to wait for it takes no processor."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return cast(DeviceEvent, event)

    def stamp(self) -> DeviceEvent:
        """The same, with the time at which the device came to it."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return cast(DeviceEvent, event)

    def wait(self, event: DeviceEvent) -> None:
        """Let later work of this thread's stream begin after ``event``; this thread does not wait."""
        torch.cuda.current_stream(self.device).wait_event(cast(torch.cuda.Event, event))

    def synchronize(self) -> None:
        """Block this thread until all work so far of its stream is done; other streams may be waiting for messages."""
        torch.cuda.current_stream(self.device).synchronize()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within it, operations of this thread go to the side stream."""
        with torch.cuda.stream(self._side):
            yield
