"""How a process computes: number formats, memory layout of images, compiled blocks."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterflow.config import EngineConfig


@dataclass(frozen=True)
class Numerics:
    """What `engine.precision`, `engine.channels_last` and `engine.compile` mean on one device."""

    device: torch.device
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False

    @classmethod
    def of(cls, config: EngineConfig, device: torch.device) -> "Numerics":
        bf16 = config.precision == "bf16" or (config.precision == "auto" and _multiplies_bf16(device))
        return cls(device, bf16, config.channels_last, config.compile)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def prepare_module(self, module: nn.Module, hot: Iterable[nn.Module]) -> None:
        """Move ``module`` to the device and layout, in place; its parts ``hot`` are compiled if configured."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        if self.compile:
            for part in hot:
                part.compile()

    def pack(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As messages: contiguous, and numbers in float32. Images keep the layout that they are computed in.

        One memory layout on both sides, local or remote: kernels round differently with another one.
        """
        return tuple(
            (t.permute(0, 2, 3, 1) if self.channels_last and t.ndim == 4 else t).contiguous()
            for t in (t.float() if t.dtype == torch.bfloat16 else t for t in tensors)
        )

    def unpack(self, message: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.channels_last:
            return message
        return tuple(t.permute(0, 3, 1, 2) if t.ndim == 4 else t for t in message)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of a tensor of ``shape`` in a message."""
        if not self.channels_last or len(shape) != 4:
            return shape
        batch, channels, height, width = shape
        return batch, height, width, channels


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the processor has units for matrices of bfloat16; elsewhere, autocast only adds conversions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
