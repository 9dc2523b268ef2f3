"""Compute settings: threads, memory, number formats, image layout, random numbers, compiled blocks."""

import ctypes
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from counterflow.models.recomputation import recompute
from counterflow.seeding import derive_seed

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt, in the GNU C library."""

_NEVER = 2**31 - 1
_AT_ONCE = 64 << 20
_LARGEST = 32 << 20
"""The most that the library allows; larger blocks always go back to the system."""


@dataclass(frozen=True)
class Runtime:
    """``engine.precision``, ``wire``, ``channels_last``, ``compile`` and ``recompute`` on one device."""

    device: torch.device
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    wire: torch.dtype = torch.float32
    """Type of numbers in messages between blocks."""

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def prepare_module(self, module: nn.Module, hot: Iterable[nn.Module]) -> None:
        """Move ``module`` to the device and layout, in place; its parts ``hot`` are compiled if configured, and their
        layers recomputed."""
        module.to(self.device)
        if self.recompute:
            hot = list(hot)
            for layer in (layer for part in hot if isinstance(part, nn.Sequential) for layer in part):
                recompute(layer)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        if self.compile:
            for part in hot:
                part.compile()

    def pack(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors as messages hold them: contiguous, numbers in the type of the wire, rounded half to even. Images keep
        the layout of computation.

        One memory layout and one type on both sides, local or remote: kernels round differently with another one.
        """
        return self.arrange(tuple(t.to(self.wire) if t.is_floating_point() else t for t in tensors))

    def arrange(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Contiguous tensors in the layout of messages."""
        return tuple((t.permute(0, 2, 3, 1) if self.channels_last and t.ndim == 4 else t).contiguous() for t in tensors)

    def unpack(self, message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors as blocks take them: numbers in float32."""
        return tuple(
            t.permute(0, 3, 1, 2) if self.channels_last and t.ndim == 4 else t
            for t in (t.float() if t.dtype == torch.bfloat16 else t for t in message)
        )

    def rounded(self, activation: Tensor) -> Tensor:
        """``activation`` as the block above takes it; its gradient is rounded on the way back too."""
        return activation if self.wire == torch.float32 else activation.to(self.wire).float()

    def packed_type(self, dtype: torch.dtype) -> torch.dtype:
        """The type that a tensor of ``dtype`` has in a message."""
        return self.wire if dtype.is_floating_point else dtype

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a tensor of ``shape`` has in a message."""
        if not self.channels_last or len(shape) != 4:
            return shape
        batch, channels, height, width = shape
        return batch, height, width, channels

    def seed_forward(self, seed: int, piece: int, n: int, part: int = 0, replica: int = 0) -> None:
        """Seed the generator of dropout for the forward pass of a ``piece`` of the network, in a replica, on a part of
        batch ``n``.

        The numbers are a function of what is computed, not of where or when.
        """
        cuda = self.device.type == "cuda"
        generator = torch.cuda.default_generators[self.device.index or 0] if cuda else torch.default_generator
        name: list[str | int] = [piece, n]
        if part:
            name.append(part)
        if replica:
            name += ["replica", replica]
        generator.manual_seed(derive_seed(seed, "forward", *name))


def has_bf16_units(device: torch.device) -> bool:
    """The processor multiplies matrices of bfloat16 in hardware; elsewhere, autocast only adds conversions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def intra_op_threads(setting: int | str, pieces: int) -> int:
    """Threads of one process for ``engine.threads``: ``auto`` is cores / pieces, at least 1.

    A function of the machine, of N and of R, never of P, because kernels round differently with another number of
    threads. OMP_NUM_THREADS, which launchers set, does not count, for the same reason.
    """
    if isinstance(setting, int):
        return setting
    return max(1, len(os.sched_getaffinity(0)) // pieces)


@cache
def disable_malloc_trim() -> None:
    """Have this process keep the host memory that it frees, for the activations of the next batch.

    By default the GNU C library returns large blocks to the system, which then hands out pages of zeros, one fault for
    each: with activations of 6 MB that took a quarter of all time. Does nothing where there is another C library.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in ((_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _AT_ONCE), (_M_MMAP_THRESHOLD, _LARGEST)):
            library.mallopt(parameter, value)
