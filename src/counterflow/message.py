"""Tag and header of a message. Plain values: no tensors."""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum


class MessageKind(IntEnum):
    """Content of a message."""

    ACTIVATION = 1
    TARGET = 2
    TEST = 3
    """An activation of a test batch: forward only, no update."""
    PREDICTION = 4
    """A message down for a test batch, under rules that predict at the bottom."""
    GRADIENT = 5
    """The gradient of an activation, under backprop with stale gradients."""
    SLICE = 6
    """From one copy of a block to another: the part of its gradients, or parameters, that the other one sums up."""
    SUM = 7
    """From one copy of a block to another: the part that it has summed up, of all copies."""


@dataclass(frozen=True, order=True)
class Tag:
    """Batch of a message: training batch ``n``, of activations its part ``e``, or test batch ``e`` of the evaluation
    that follows batch ``n``; between copies of a block, bucket ``e`` of the meeting
    after batch ``n``."""

    kind: MessageKind
    n: int
    e: int = 0

    def __str__(self) -> str:
        if self.kind in (MessageKind.TEST, MessageKind.PREDICTION):
            name = "test" if self.kind is MessageKind.TEST else "predicted"
            return f"{name} batch {self.e} after batch {self.n}"
        part = f"part {self.e} of " if self.e else ""
        return f"{self.kind.name.lower()} of {part}batch {self.n}"


class MessageError(Exception):
    """A message that is corrupt, or not the one that the program expects next."""


MAGIC = b"CNTRFLW1"
HEADER_BYTES = 64
"""One cache line, so that the tensor behind the header is aligned as a fresh one is."""

_FIELDS = struct.Struct("<8sIqqQ")


def pack_header(tag: Tag, nbytes: int) -> bytes:
    """The ``HEADER_BYTES`` bytes before a payload of ``nbytes`` bytes: magic, kind, n, e, nbytes, checksum, zeros."""
    fields = _FIELDS.pack(MAGIC, tag.kind, tag.n, tag.e, nbytes)
    return (fields + zlib.crc32(fields).to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")


def unpack_header(header: bytes) -> tuple[Tag, int]:
    """Tag and payload bytes that ``header`` announces. Raises `MessageError` if it is corrupt."""
    _, kind, n, e, nbytes = _FIELDS.unpack_from(header)
    if kind not in list(MessageKind) or header != pack_header(tag := Tag(MessageKind(kind), n, e), nbytes):
        raise MessageError("corrupt header")
    return tag, nbytes


def check_header(header: bytes, tag: Tag, nbytes: int) -> None:
    """Raise `MessageError` unless ``header`` announces exactly message ``tag`` with a payload of ``nbytes`` bytes."""
    try:
        found, announced = unpack_header(header)
    except MessageError as error:
        raise MessageError(f"{error} where {tag} was expected") from None
    if found != tag:
        raise MessageError(f"{found} came where {tag} was expected")
    if announced != nbytes:
        raise MessageError(f"{tag} announces {announced} bytes, {nbytes} were agreed")
