"""Message layout: the places of tensors in a buffer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterflow.message import HEADER_BYTES
from counterflow.transport import MessageLayout, TensorSpec
from tests.helpers.links import filled, same_bits

DTYPES = {
    torch.bool: 1,
    torch.uint8: 1,
    torch.int32: 4,
    torch.int64: 8,
    torch.float16: 2,
    torch.bfloat16: 2,
    torch.float32: 4,
    torch.float64: 8,
    torch.complex64: 8,
}

specs = st.builds(
    TensorSpec, st.lists(st.integers(0, 6), max_size=4).map(tuple), st.sampled_from(sorted(DTYPES, key=str))
)
layouts = st.lists(specs, max_size=5).map(lambda several: MessageLayout(tuple(several)))


def test_layout_by_hand() -> None:
    layout = MessageLayout(
        (
            TensorSpec((3, 5)),  # 60 bytes, so 64
            TensorSpec((2, 9), torch.int64),  # 144 bytes, so 192
            TensorSpec((), torch.float64),  # 8 bytes, so 64
            TensorSpec((0, 4)),  # nothing
            TensorSpec((64,), torch.bool),  # exactly 64
        )
    )
    assert layout.offsets == (64, 128, 320, 384, 384)
    assert layout.nbytes == 448
    assert layout.payload_nbytes == 384


def test_large_tensors_come_last_and_travel_alone() -> None:
    layout = MessageLayout(
        (
            TensorSpec((1 << 19,)),  # 2 MB, the least that is large
            TensorSpec((3, 5)),
            TensorSpec((600_001,), torch.int64),  # not a multiple of 64
            TensorSpec(((1 << 19) - 1,)),
        )
    )
    small = 64 + (1 << 21)  # 60 bytes and 2,097,148
    assert layout.large == (0, 2)
    assert layout.head == 64 + small
    assert layout.offsets == (layout.head, 64, layout.head + (1 << 21), 128)
    end = layout.head + (1 << 21)
    assert layout.pieces == (slice(0, layout.head), slice(layout.head, end), slice(end, end + 8 * 600_001))
    assert layout.nbytes == end + 8 * 600_001 + 56


def test_a_message_without_tensors() -> None:
    layout = MessageLayout(())
    assert (layout.nbytes, layout.payload_nbytes) == (HEADER_BYTES, 0)
    assert layout.views(torch.zeros(64, dtype=torch.uint8)) == ()
    layout.check(())


@given(layouts)
def test_tensors_are_apart_and_aligned(layout: MessageLayout) -> None:
    end = HEADER_BYTES
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        assert spec.nbytes == math.prod(spec.shape) * DTYPES[spec.dtype]
        assert offset % 64 == 0
        assert end <= offset < end + 64
        end = offset + spec.nbytes
    assert end <= layout.nbytes < end + 64
    assert layout.nbytes % 64 == 0
    assert layout.payload_nbytes == layout.nbytes - HEADER_BYTES


@given(layouts, st.integers(0, 200))
def test_views_alias_the_buffer(layout: MessageLayout, spare: int) -> None:
    """Tensors written through the views lie in the buffer at the offsets; the buffer may be larger."""
    buffer = torch.zeros(layout.nbytes + spare, dtype=torch.uint8)
    content = filled(layout, 5)
    for view, tensor in zip(layout.views(buffer), content, strict=True):
        assert view.data_ptr() % 64 == 0 or not view.numel()
        view.copy_(tensor)
    expected = torch.zeros_like(buffer)
    for offset, tensor in zip(layout.offsets, content, strict=True):
        raw = tensor.flatten().view(torch.uint8)
        expected[offset : offset + len(raw)] = raw
    assert torch.equal(buffer, expected)
    assert same_bits(layout.views(buffer), content)


@given(layouts)
def test_check_accepts_the_specs(layout: MessageLayout) -> None:
    content = filled(layout, 1)
    layout.check(content)
    layout.check(list(content))
    assert MessageLayout(tuple(TensorSpec.of(tensor) for tensor in content)) == layout


LAYOUT = MessageLayout((TensorSpec((3, 5)), TensorSpec((7,), torch.int64)))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ((torch.zeros(5, 3), torch.zeros(7, dtype=torch.int64)), "float32[5, 3], int64[7]"),
        ((torch.zeros(15), torch.zeros(7, dtype=torch.int64)), "float32[15], int64[7]"),
        ((torch.zeros(2, 5), torch.zeros(7, dtype=torch.int64)), "float32[2, 5], int64[7]"),
        ((torch.zeros(3, 5, dtype=torch.int32), torch.zeros(7, dtype=torch.int64)), "int32[3, 5], int64[7]"),
        ((torch.zeros(7, dtype=torch.int64), torch.zeros(3, 5)), "int64[7], float32[3, 5]"),
        ((torch.zeros(3, 5),), "float32[3, 5]"),
        ((torch.zeros(3, 5), torch.zeros(7, dtype=torch.int64), torch.zeros(())), "float32[3, 5], int64[7], float32[]"),
        ((), "nothing"),
    ],
)
def test_check_refuses_other_tensors(tensors: tuple[torch.Tensor, ...], text: str) -> None:
    with pytest.raises(ValueError, match=r"was agreed$") as caught:
        LAYOUT.check(tensors)
    assert str(caught.value) == f"a message of {text} where float32[3, 5], int64[7] was agreed"
