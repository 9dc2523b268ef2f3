"""Blocks that are one stage of a pipeline schedule, with the messages between them."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from counterflow.algorithms.rule import Shape
from counterflow.engine.quantization import dequantize, quantize, scale_shape
from counterflow.engine.runtime import Runtime


class StageBlocks(nn.Sequential):
    """The blocks of a stage. Its messages are one contiguous tensor in the type of the wire, whatever it computes with.

    Torch's schedules send an output as it is, and the gradient of an output as a tensor of the same shape and type.
    Under ``engine.wire=int8`` both are the bytes of numbers and scales, as a float32 tensor that is only ever copied.
    """

    def __init__(self, blocks: Sequence[nn.Module], runtime: Runtime, below: Shape | None, is_top: bool) -> None:
        """``below``: shape of one sample of the activation from below; None at the bottom."""
        super().__init__(*blocks)
        self._runtime = runtime
        self._below = below
        self._is_top = is_top

    def outputs(self, message: Tensor) -> Iterator[Tensor]:
        """The output of every block, bottom to top, from the message from below."""
        activation = message
        if message.dtype == torch.bfloat16:
            activation = message.float()
        elif self._below is not None and self._runtime.wire == "int8":
            activation = _Unpacked.apply(message, (len(message), *self._below))
        if self._runtime.channels_last and activation.ndim == 4:
            activation = activation.contiguous(memory_format=torch.channels_last)
        for number, block in enumerate(self, 1):
            with self._runtime.autocast():
                activation = block(activation)
            yield activation
            if number < len(self):
                activation = rounded(activation, self._runtime.wire)

    def forward(self, message: Tensor) -> Tensor:
        *_, output = self.outputs(message)
        return self.message(output)

    def message(self, output: Tensor) -> Tensor:
        """``output`` of the last block as it leaves the stage."""
        if self._is_top or self._runtime.wire == "fp32":
            return output.float().contiguous()
        if _is_quantized(output.shape, self._runtime.wire):
            packed: Tensor = _Packed.apply(output)
            return packed
        return output.to(torch.bfloat16).contiguous()


def empty_message(shape: Shape, wire: str, device: torch.device) -> Tensor:
    """Memory for the message of an activation of ``shape``."""
    if _is_quantized(shape, wire):
        return torch.empty(shape[0], _columns(shape), device=device)
    return torch.empty(shape, dtype=torch.float32 if wire == "fp32" else torch.bfloat16, device=device)


def rounded(activation: Tensor, wire: str) -> Tensor:
    """``activation`` as the block above takes it; its gradient is rounded on the way back too."""
    if wire == "fp32":
        return activation
    if _is_quantized(activation.shape, wire):
        quantized: Tensor = _Rounded.apply(activation)
        return quantized
    return activation.to(torch.bfloat16).float()


def _is_quantized(shape: Shape, wire: str) -> bool:
    return wire == "int8" and scale_shape(tuple(shape)) is not None


def _scales(shape: Shape) -> Shape:
    scales = scale_shape(shape)
    assert scales is not None, "a tensor with rows"
    return scales


def _columns(shape: Shape) -> int:
    """Float32 numbers that have the bytes of a sample: its scales, and then its numbers."""
    return prod(_scales(shape)[1:]) + -(-prod(shape[1:]) // 4)


def _packed(tensor: Tensor) -> Tensor:
    """``tensor`` of ``B`` samples as the bytes of scales and numbers, float32 ``[B, columns]``."""
    shape = tuple(tensor.shape)
    numbers, scales = quantize(tensor)
    packed = torch.empty(shape[0], _columns(shape), device=tensor.device)
    packed[:, -1] = 0  # it may end with bytes that are no number
    packed[:, : scales[0].numel()] = scales.flatten(1)
    start = 4 * scales[0].numel()
    packed.view(torch.int8)[:, start : start + numbers[0].numel()] = numbers.flatten(1)
    return packed


def _unpacked(packed: Tensor, shape: Shape) -> Tensor:
    scales = packed[:, : prod(_scales(shape)[1:])].reshape(_scales(shape))
    start = 4 * scales[0].numel()
    return dequantize(packed.view(torch.int8)[:, start : start + prod(shape[1:])].reshape(shape), scales)


class _Packed(torch.autograd.Function):
    """A tensor as its message; its gradient comes as one."""

    @staticmethod
    def forward(ctx: FunctionCtx, activation: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = tuple(activation.shape), activation.dtype  # type: ignore[attr-defined]
        return _packed(activation)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _unpacked(gradient.contiguous(), ctx.shape).to(ctx.dtype)  # type: ignore[attr-defined]


class _Unpacked(torch.autograd.Function):
    """A tensor from its message; its gradient leaves as one."""

    @staticmethod
    def forward(ctx: FunctionCtx, message: Tensor, shape: Shape) -> Tensor:
        return _unpacked(message, shape)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return _packed(gradient), None


class _Rounded(torch.autograd.Function):
    """A tensor as its message brings it; its gradient too."""

    @staticmethod
    def forward(ctx: FunctionCtx, activation: Tensor) -> Tensor:
        ctx.dtype = activation.dtype  # type: ignore[attr-defined]
        return dequantize(*quantize(activation))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return dequantize(*quantize(gradient)).to(ctx.dtype)  # type: ignore[attr-defined]
