import re
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterflow.message import HEADER_BYTES, MessageError, MessageKind, Tag, check_header, pack_header

# magic, kind, n, e, nbytes, checksum; the rest is zeros
FIELD_BYTES = 8 + 4 + 8 + 8 + 8 + 4

tags = st.builds(Tag, st.sampled_from(MessageKind), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
sizes = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (Tag(MessageKind.ACTIVATION, 5), "activation of batch 5"),
        (Tag(MessageKind.TARGET, 0), "target of batch 0"),
        (Tag(MessageKind.TEST, 9, 2), "test batch 2 after batch 9"),
        (Tag(MessageKind.PREDICTION, 9, 2), "predicted batch 2 after batch 9"),
        (Tag(MessageKind.GRADIENT, 4), "gradient of batch 4"),
    ],
)
def test_text_of_a_tag(tag: Tag, text: str) -> None:
    assert str(tag) == text


def test_kinds_keep_their_numbers() -> None:
    """They are on the wire."""
    names = ["ACTIVATION", "TARGET", "TEST", "PREDICTION", "GRADIENT", "SLICE", "SUM"]
    assert [(kind.name, kind.value) for kind in MessageKind] == [(name, i) for i, name in enumerate(names, 1)]


def test_header_by_hand() -> None:
    fields = b"CNTRFLW1" + struct.pack("<I", 3) + struct.pack("<q", 9) + struct.pack("<q", 2) + struct.pack("<Q", 640)
    expected = fields + struct.pack("<I", zlib.crc32(fields)) + bytes(24)
    assert pack_header(Tag(MessageKind.TEST, 9, 2), 640) == expected
    assert len(expected) == HEADER_BYTES == 64


@given(tags, sizes)
def test_round_trip(tag: Tag, nbytes: int) -> None:
    header = pack_header(tag, nbytes)
    assert len(header) == HEADER_BYTES
    check_header(header, tag, nbytes)


@given(tags, tags, sizes, sizes)
def test_only_the_message_itself_passes(sent: Tag, expected: Tag, nbytes: int, agreed: int) -> None:
    header = pack_header(sent, nbytes)
    if (sent, nbytes) == (expected, agreed):
        check_header(header, expected, agreed)
        return
    with pytest.raises(MessageError):
        check_header(header, expected, agreed)


@pytest.mark.parametrize(
    ("tag", "nbytes"),
    [(Tag(MessageKind.ACTIVATION, 0), 0), (Tag(MessageKind.TARGET, 2**40), 64), (Tag(MessageKind.TEST, 17, 3), 2**20)],
)
def test_every_flipped_bit_is_refused(tag: Tag, nbytes: int) -> None:
    header = pack_header(tag, nbytes)
    for bit in range(8 * FIELD_BYTES):
        corrupt = bytearray(header)
        corrupt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError, match=f"^corrupt header where {tag} was expected$"):
            check_header(bytes(corrupt), tag, nbytes)


@given(tags, sizes, st.integers(0, FIELD_BYTES - 1), st.integers(1, 255))
def test_every_corrupt_byte_is_refused(tag: Tag, nbytes: int, place: int, change: int) -> None:
    corrupt = bytearray(pack_header(tag, nbytes))
    corrupt[place] ^= change
    with pytest.raises(MessageError, match=r"^corrupt header"):
        check_header(bytes(corrupt), tag, nbytes)


@pytest.mark.parametrize("header", [bytes(HEADER_BYTES), b"\xff" * HEADER_BYTES, bytes(range(HEADER_BYTES))])
def test_bytes_that_are_no_header(header: bytes) -> None:
    with pytest.raises(MessageError, match=r"^corrupt header where target of batch 4 was expected$"):
        check_header(header, Tag(MessageKind.TARGET, 4), 64)


def sealed(magic: bytes, kind: int) -> bytes:
    """A header whose checksum is right, whatever its fields are."""
    fields = struct.pack("<8sIqqQ", magic, kind, 4, 0, 64)
    return (fields + struct.pack("<I", zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


@pytest.mark.parametrize(("magic", "kind"), [(b"CNTRFLW2", 2), (b"CNTRFLW1", 0), (b"CNTRFLW1", 8), (b"HTTP/1.1", 2)])
def test_a_foreign_header_with_a_right_checksum(magic: bytes, kind: int) -> None:
    check_header(sealed(b"CNTRFLW1", 2), Tag(MessageKind.TARGET, 4), 64)
    with pytest.raises(MessageError, match=r"^corrupt header where target of batch 4 was expected$"):
        check_header(sealed(magic, kind), Tag(MessageKind.TARGET, 4), 64)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (Tag(MessageKind.ACTIVATION, 3), Tag(MessageKind.ACTIVATION, 4)),
        (Tag(MessageKind.ACTIVATION, 3), Tag(MessageKind.TARGET, 3)),
        (Tag(MessageKind.TEST, 3, 0), Tag(MessageKind.TEST, 3, 1)),
        (Tag(MessageKind.TEST, 3, 0), Tag(MessageKind.ACTIVATION, 3)),
    ],
)
def test_a_message_out_of_turn(sent: Tag, expected: Tag) -> None:
    with pytest.raises(MessageError, match=f"^{re.escape(f'{sent} came where {expected} was expected')}$"):
        check_header(pack_header(sent, 64), expected, 64)


def test_another_size_than_agreed() -> None:
    tag = Tag(MessageKind.ACTIVATION, 3)
    with pytest.raises(MessageError, match=r"^activation of batch 3 announces 128 bytes, 64 were agreed$"):
        check_header(pack_header(tag, 128), tag, 64)
