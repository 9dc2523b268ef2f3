"""Messages of pipeline schedules: what is sent, and the gradients that come back."""

import pytest
import torch
from torch import Tensor, nn

from counterflow.engine.quantization import dequantize, quantize
from counterflow.engine.runtime import Runtime
from counterflow.engine.stage_blocks import StageBlocks, empty_message, rounded

CPU = torch.device("cpu")
SHAPES = [(32,), (6, 16), (4, 8, 8), (2, 3, 5)]


class Scale(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def as_sent(tensor: Tensor, wire: str) -> Tensor:
    if wire == "fp32":
        return tensor
    return tensor.bfloat16().float() if wire == "bf16" else dequantize(*quantize(tensor))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_activations_and_gradients_are_rounded_once_on_their_way(
    wire: str, shape: tuple[int, ...], channels_last: bool
) -> None:
    """Two stages of one block, and one of two, against products by hand."""
    torch.manual_seed(0)
    lower, upper = Scale(shape), Scale(shape)
    runtime = Runtime(CPU, wire=wire, channels_last=channels_last)
    bottom = StageBlocks([lower], runtime, None, False)
    top = StageBlocks([upper], runtime, shape, True)
    x, loss_gradient = torch.randn(3, *shape), torch.randn(3, *shape)

    message = bottom(x)
    example = empty_message((3, *shape), wire, CPU)
    assert (message.shape, message.dtype, message.is_contiguous()) == (example.shape, example.dtype, True)
    received = message.detach().clone().requires_grad_()
    output = top(received)
    output.backward(loss_gradient)
    assert received.grad is not None
    assert (received.grad.shape, received.grad.dtype) == (message.shape, message.dtype)
    message.backward(received.grad.clone())

    activation = as_sent((x * lower.weight).detach(), wire)
    assert torch.equal(output, activation * upper.weight)
    gradient = as_sent(loss_gradient * upper.weight.detach(), wire)
    assert upper.weight.grad is not None
    assert lower.weight.grad is not None
    assert torch.allclose(upper.weight.grad, (loss_gradient * activation).sum(0), rtol=1e-5, atol=1e-6)
    assert torch.allclose(lower.weight.grad, (gradient * x).sum(0), rtol=1e-5, atol=1e-6)

    grads = [lower.weight.grad, upper.weight.grad]
    lower.weight.grad = upper.weight.grad = None
    both = StageBlocks([lower, upper], runtime, None, True)(x)
    assert torch.equal(both, output)
    both.backward(loss_gradient)
    for parameter, expected in zip((lower.weight, upper.weight), grads, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, expected)


def test_bytes_of_a_message() -> None:
    for shape in [(32, 64), (32, 16, 8, 8), (8, 32, 128)]:
        sizes = {wire: empty_message(shape, wire, CPU).nbytes for wire in ("fp32", "bf16", "int8")}
        assert sizes["bf16"] == sizes["fp32"] // 2
        assert sizes["int8"] <= 0.27 * sizes["fp32"]
    assert empty_message((5, 3), "int8", CPU).dtype == torch.bfloat16, "rows that are too short for a scale"


def test_short_rows_are_rounded_to_bfloat16() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(rounded(x, "int8"), x.bfloat16().float())
