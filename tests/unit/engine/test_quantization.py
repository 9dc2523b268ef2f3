"""int8 numbers with a scale for every row, against a plain loop."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from counterflow.engine.quantization import dequantize, quantize, scale_shape

ROWS = {
    (3, 64): (3, 1),
    (3, 5, 16): (3, 5, 1),
    (2, 4, 8, 8): (2, 4, 1, 1),
    (2, 64, 3, 5): (2, 1, 3, 5),
    (2, 6, 3, 5): (2, 1, 1, 1),
    (2, 128, 1, 1): (2, 1, 1, 1),
    (2, 3, 4, 4, 4): (2, 3, 1, 1, 1),
    (1, 8): (1, 1),
}
WITHOUT = [(), (9,), (3, 7), (3, 50, 4), (2, 1, 2, 2), (3, 0)]


def looped(tensor: Tensor) -> tuple[list[int], list[float]]:
    """Numbers and scales by a loop over rows in float32, without torch."""
    shape = ROWS[tuple(tensor.shape)]
    values = tensor.float().numpy()
    numbers = np.zeros(values.shape, np.int64)
    scales = np.zeros(shape, np.float32)
    for index in itertools.product(*map(range, shape)):
        row = tuple(slice(None) if size == 1 else i for i, size in zip(index, shape, strict=True))
        scale = np.float32(max(abs(float(x)) for x in values[row].flat)) / np.float32(127)
        scales[index] = scale
        for place in itertools.product(*map(range, values[row].shape)):
            numbers[row][place] = round(float(np.float32(values[row][place]) / scale)) if scale else 0
    return numbers.flatten().tolist(), scales.flatten().tolist()


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_and_scales_are_those_of_a_loop(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * torch.randn(shape[0], *[1] * (len(shape) - 1)).exp()).to(dtype)
    tensor[0].view(-1)[:8] = 0
    numbers, scales = quantize(tensor)
    assert (numbers.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert (tuple(numbers.shape), tuple(scales.shape)) == (shape, ROWS[shape])
    assert scale_shape(shape) == ROWS[shape]
    assert (numbers.flatten().tolist(), scales.flatten().tolist()) == looped(tensor)


@pytest.mark.parametrize("shape", ROWS)
def test_a_number_is_off_by_half_a_scale_at_most(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    tensor = 3 * torch.randn(shape)
    numbers, scales = quantize(tensor)
    found = dequantize(numbers, scales)
    assert ((found - tensor).abs() <= 0.50001 * scales).all()
    assert (found - tensor).abs().max() > 0.1 * scales.min(), "something was rounded"
    assert torch.equal(dequantize(*quantize(-tensor)), -found)


@pytest.mark.parametrize("shape", WITHOUT)
def test_short_rows_have_no_scale(shape: tuple[int, ...]) -> None:
    assert scale_shape(shape) is None


def test_halves_go_to_even() -> None:
    row = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    numbers, scales = quantize(row)
    assert scales.tolist() == [[1.0]]
    assert numbers.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]


def test_rows_of_zeros_and_of_small_and_large_numbers() -> None:
    rows = torch.stack([torch.full((8,), value) for value in (0.0, -0.0, 1e-40, 1e-35, 3.4e38)])
    numbers, scales = quantize(rows)
    assert numbers.tolist() == [[0] * 8] * 3 + [[127] * 8] * 2
    found = dequantize(numbers, scales)
    assert (found[:3] == 0).all(), "zeros, and less than the smallest normal number times 127"
    assert torch.allclose(found[3:] / rows[3:], torch.ones(2, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_makes_its_row_nan_and_no_other(bad: float) -> None:
    rows = torch.randn(3, 9)
    good = dequantize(*quantize(rows))
    rows[1, 4] = bad
    found = dequantize(*quantize(rows))
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], good[[0, 2]])


def test_memory_layout_and_size_of_a_batch_change_nothing() -> None:
    torch.manual_seed(2)
    images = torch.randn(5, 16, 80, 80)  # several of the pieces in which numbers are rounded
    numbers, scales = quantize(images)
    inner = images.contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(quantize(inner), (numbers, scales), strict=True))
    for i in range(5):
        assert all(torch.equal(a[0], b[i]) for a, b in zip(quantize(images[i : i + 1]), (numbers, scales), strict=True))


@pytest.mark.parametrize(
    "shape",
    [
        (8, 64, 32, 32),
        (8, 64, 15, 15),
        (8, 128, 7, 7),
        (8, 512, 4, 4),
        (8, 3, 8, 8),
        (8, 20, 5, 5),
        (8, 9, 384),
        (8, 64),
    ],
)
def test_bytes_are_a_quarter(shape: tuple[int, ...]) -> None:
    scales = scale_shape(shape)
    assert scales is not None
    assert prod(shape) + 4 * prod(scales) <= 0.27 * 4 * prod(shape)
