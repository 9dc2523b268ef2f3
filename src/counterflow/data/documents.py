"""Documents of a text: files of UTF-8, read in chunks, whose parts are training, held-out and test data."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from math import floor
from pathlib import Path

SPLITS = ("train", "validation", "test")
_BY_FILE = 40
"""From so many files on, whole files are held out; of fewer, a part of each."""
_TEST = 0.05
"""Share of the text that is test data."""
_CHUNK = 1 << 24
"""Bytes that are read at a time."""


def documents(
    root: Path, paths: Sequence[Path], validation: float, *, whole_characters: bool
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """The split, the bytes and the content, which is to be read at once, of every part of every file that has any.

    Parts of a file may end within a character, unless they shall have ``whole_characters``.

    Raises ``ValueError`` that names the first wrong byte of a file that is no UTF-8.
    """
    for number, path in enumerate(paths):
        read = checked_reader(path, root)
        parts = _parts(path.stat().st_size, number, len(paths), validation)
        if whole_characters:
            parts = _whole_characters(path, parts)
        for index, (name, size) in enumerate(parts):
            chunks = read_document(read, size, last=index == len(parts) - 1)
            if size:
                yield name, size, chunks
            for _ in chunks:  # what the reader has not taken
                pass


def read_document(read: Callable[[int], bytes], size: int, *, last: bool) -> Iterator[bytes]:
    """The next ``size`` bytes of a file, a chunk at a time; the ``last`` ones must end with a whole character."""
    while size and (chunk := read(min(size, _CHUNK))):
        yield chunk
        size -= len(chunk)
    if last:
        read(0)


def checked_reader(path: Path, root: Path) -> Callable[[int], bytes]:
    """Read the next bytes of a file, which must be UTF-8, or with 0 make sure that it ended with a whole character.

    Raises ``ValueError`` that names the first wrong byte.
    """
    file, decoder, before = path.open("rb"), codecs.getincrementaldecoder("utf-8")(), 0

    def read(size: int) -> bytes:
        nonlocal before
        pending = len(decoder.getstate()[0])
        content = file.read(size)
        try:
            decoder.decode(content, final=size == 0)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.root={root}: {path.relative_to(root)} is no UTF-8: its byte {before - pending + error.start} is "
                f"0x{error.object[error.start]:02x}"
            ) from None
        finally:
            if size == 0:
                file.close()
        before += len(content)
        return content

    return read


def _parts(size: int, number: int, files: int, validation: float) -> list[tuple[str, int]]:
    """The splits that file ``number`` of ``files``, of ``size`` bytes, belongs to in turn, with the bytes of each."""
    if files >= _BY_FILE:
        for name, share, offset in (("test", _TEST, 0.0), ("validation", validation, 0.5)):
            if floor((number + 1) * share + offset) > floor(number * share + offset):
                return [(name, size)]
        return [("train", size)]
    test, held_out = (floor(size * share) for share in (_TEST, validation))
    return [("train", size - test - held_out), ("validation", held_out), ("test", test)]


def _whole_characters(path: Path, parts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """``parts`` of a file, each of which takes the rest of a character that would be in two of them."""
    found, end, before = [], 0, 0
    with path.open("rb") as file:
        for name, size in parts:
            end += size
            file.seek(end)
            following = file.read(3)
            inside = next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))
            found.append((name, max(0, end + inside - before)))
            before = max(before, end + inside)
    return found
