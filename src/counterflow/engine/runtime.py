"""Compute settings: threads, memory, number formats, image layout, random numbers, compiled blocks."""

import ctypes
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
from torch import Tensor, nn

from counterflow.algorithms.rule import MessageSpec, Payload, Shape
from counterflow.engine.quantization import dequantize, quantize, scale_shape
from counterflow.message import MessageKind
from counterflow.models.recomputation import recompute
from counterflow.seeding import derive_seed

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt, in the GNU C library."""

_NEVER = 2**31 - 1
_AT_ONCE = 64 << 20
_LARGEST = 32 << 20
"""The most that the library allows; larger blocks always go back to the system."""

_QUANTIZED = frozenset({MessageKind.ACTIVATION, MessageKind.TEST, MessageKind.GRADIENT})
"""Messages whose numbers are int8 under ``engine.wire=int8``. Code books and predictions are bfloat16: they are small,
and a book passes all feedback blocks below, each of which would add its rounding to those above."""


@dataclass(frozen=True)
class Runtime:
    """``engine.precision``, ``wire``, ``channels_last``, ``compile`` and ``recompute`` on one device."""

    device: torch.device
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    wire: str = "fp32"
    """Numbers in messages between blocks: ``fp32``, ``bf16`` or ``int8``."""

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

    def pack(self, kind: MessageKind, tensors: Payload, specs: MessageSpec) -> Payload:
        """Tensors as messages hold them: contiguous, numbers in the type of the wire, rounded half to even; under
        ``int8`` the scales of a tensor follow it. Images keep the layout of computation.

        One memory layout and one type on both sides, local or remote: kernels round differently with another one.

        Args:
            kind: Kind of the message.
            tensors: Its content.
            specs: What the rules agreed on as its content.

        Raises:
            ValueError: The number of tensors is another one, or numbers stand for integers.
        """
        if len(tensors) != len(specs):
            raise ValueError(f"a message of {len(tensors)} tensors where {len(specs)} were agreed")
        packed: list[Tensor] = []
        for tensor, (_, dtype) in zip(tensors, specs, strict=True):
            if tensor.is_floating_point() != dtype.is_floating_point:
                raise ValueError(f"a tensor of {tensor.dtype} where {dtype} was agreed")
            first, *scales = self._packed(kind, tuple(tensor.shape), dtype)
            packed += quantize(tensor) if scales else (tensor.to(first[1]),)
        return self.arrange(tuple(packed))

    def arrange(self, tensors: Payload) -> Payload:
        """Contiguous tensors in the layout of messages."""
        return tuple((t.permute(0, 2, 3, 1) if self.channels_last and t.ndim == 4 else t).contiguous() for t in tensors)

    def unpack(self, message: Payload) -> Payload:
        """Tensors as blocks take them: numbers in float32, integers in int64."""
        arranged = iter(t.permute(0, 3, 1, 2) if self.channels_last and t.ndim == 4 else t for t in message)
        return tuple(dequantize(t, next(arranged)) if t.dtype == torch.int8 else _widened(t) for t in arranged)

    def packed(self, kind: MessageKind, specs: MessageSpec) -> MessageSpec:
        """Shape and type of every tensor in a message of ``kind`` whose content is ``specs``."""
        return tuple(
            (self.packed_shape(packed), packed_type)
            for shape, dtype in specs
            for packed, packed_type in self._packed(kind, shape, dtype)
        )

    def _packed(self, kind: MessageKind, shape: Shape, dtype: torch.dtype) -> MessageSpec:
        """Shapes and types that a tensor has in a message, before it is arranged: its own, and those of scales."""
        if not dtype.is_floating_point:  # int8 is a sign of scales
            return ((shape, torch.int16 if dtype == torch.int8 else dtype),)
        scales = scale_shape(shape) if self.wire == "int8" and kind in _QUANTIZED else None
        if scales is not None:
            return (shape, torch.int8), (scales, torch.float32)
        return ((shape, torch.float32 if self.wire == "fp32" else torch.bfloat16),)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a tensor of ``shape`` has in a message."""
        if not self.channels_last or len(shape) != 4:
            return shape
        batch, channels, height, width = shape
        return batch, height, width, channels

    def now(self) -> float:
        """Seconds of ``perf_counter``, once the device has done all that this process started on its current stream.

        Other streams may hold receives, which end with a message of a peer that waits for this process.
        """
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return perf_counter()

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


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor if tensor.dtype == torch.bool else tensor.long()


def has_bf16_units(device: torch.device) -> bool:
    """The processor multiplies matrices of bfloat16 in hardware; elsewhere, autocast only adds conversions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


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
