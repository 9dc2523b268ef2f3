"""Tokenizers of text: bytes, and subwords by a file of Hugging Face's ``tokenizers``, which is an extra."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
"""Special token that ends every document, where tokens are subwords."""
SMALLEST = 257
"""Tokens of the smallest tokenizer that can be trained: the bytes, and the end of a document."""
_PIECE = 1 << 16
"""Bytes of text that are encoded as one: no token crosses from a piece to the next."""
_AT_ONCE = 32
"""Pieces that are encoded at a time, on all cores."""
_CONTEXT = 8
"""Tokens before a new one that decide how it is spelt."""
_BLANK = b" \t\n\r\v\f"
Tokens = NDArray[np.unsignedinteger]


class TextStream(Protocol):
    """Decoder of tokens that come one by one."""

    def add(self, token: int) -> str:
        """The text that ``token`` completes; empty within a character."""

    def finish(self) -> str:
        """The rest of the text, with a replacement for half a character."""


class TextTokenizer(Protocol):
    """Text to tokens ``0..vocabulary-1``, and back."""

    vocabulary: int
    end: int
    """The token after every document."""
    type: str
    """Type of tokens in files: ``uint8``, ``uint16`` or ``uint32``."""
    content: bytes | None
    """The file by which it was made; None for bytes."""
    sha256: str
    """Checksum of ``content``; empty for bytes."""

    def encode(self, chunks: Iterable[bytes]) -> Iterator[Tokens]:
        """Tokens of a document whose UTF-8 comes in ``chunks``, without its end; bounded memory at a time."""

    def stream(self, before: Sequence[int]) -> TextStream:
        """Decoder of the tokens after ``before``."""


class ByteTokenizer:
    """Bytes as tokens. 255, which no text in UTF-8 has, ends a document."""

    vocabulary = 256
    end = 255
    type = "uint8"
    content: bytes | None = None
    sha256 = ""

    def encode(self, chunks: Iterable[bytes]) -> Iterator[Tokens]:
        for chunk in chunks:
            yield np.frombuffer(chunk, np.uint8)

    def stream(self, before: Sequence[int]) -> TextStream:
        return _ByteStream()


class _ByteStream:
    """`TextStream` of bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class SubwordTokenizer:
    """Tokens of a tokenizer of Hugging Face.

    Special tokens that a text spells out are text. Long documents are encoded in pieces of at most 64 KiB (`pieces`).
    """

    def __init__(self, content: bytes, name: str) -> None:
        """Read the file ``content``. Errors are ``ValueError`` of one line that begins with ``name``."""
        _require_library(name)
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library has no class of its own
            text = " ".join(str(error).split())
            raise ValueError(f"{name}: is damaged, or no tokenizer of Hugging Face's tokenizers ({text})") from error
        special = [token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special]
        end = self._tokenizer.token_to_id(END_OF_TEXT)
        if end is None or end not in special:
            raise ValueError(f"{name}: has no special token {END_OF_TEXT}, which must end every document")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.end: int = end
        self.vocabulary = 1 + max(self._tokenizer.get_vocab().values())
        self.type = "uint16" if self.vocabulary <= 1 << 16 else "uint32"
        self.content: bytes | None = content
        self.sha256 = hashlib.sha256(content).hexdigest()

    def encode(self, chunks: Iterable[bytes]) -> Iterator[Tokens]:
        for texts in _groups(pieces(chunks)):
            for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=self.type)

    def keeps(self, text: str) -> bool:
        """True if ``text`` comes back from its tokens as it was."""
        return self.decode([int(t) for tokens in self.encode([text.encode()]) for t in tokens]) == text

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, special ones spelt out."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def stream(self, before: Sequence[int]) -> TextStream:
        return _SubwordStream(self, before)


class _SubwordStream:
    """`TextStream` of subwords: what a new token adds to the text of the ones before it."""

    def __init__(self, tokenizer: SubwordTokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._settle(list(before))

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # perhaps the beginning of a character
            return ""
        new = text[self._shown :]
        self._settle(self._tokens)
        return new

    def finish(self) -> str:
        return self._tokenizer.decode(self._tokens)[self._shown :]

    def _settle(self, tokens: list[int]) -> None:
        """Keep the last of ``tokens``, whose text has been given away."""
        self._tokens = tokens[-_CONTEXT:]
        self._shown = len(self._tokenizer.decode(self._tokens))


def load_tokenizer(path: str | None) -> TextTokenizer:
    """The tokenizer of ``data.tokenizer``; None is bytes.

    Raises ``ValueError`` of one line if the file is missing or damaged, has no `END_OF_TEXT`, or if the extra
    ``tokenizers`` is not installed.
    """
    if path is None:
        return ByteTokenizer()
    name = f"data.tokenizer={path}"
    try:
        content = Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from error
    return SubwordTokenizer(content, name)


def tokenizer_of(content: bytes | None, name: str) -> TextTokenizer:
    """The tokenizer that a run keeps, ``content`` of the file ``name``; None is bytes. Errors as `load_tokenizer`."""
    return ByteTokenizer() if content is None else SubwordTokenizer(content, name)


def pieces(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of ``chunks`` in pieces of at most `_PIECE` bytes, a function of the text and not of its chunks.

    A piece ends at the last line end between two characters that are not blank; where it has none, at its last line
    end; else after its last whole character. Pre-tokenizers of GPT-2's kind separate words at the first of these
    anyway, so that tokens are those of the text as a whole.
    """
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > _PIECE:
            end = start + _piece_end(rest[start : start + _PIECE + 1])
            yield rest[start:end].decode("utf-8", "replace")  # the reader of a file refuses what is no UTF-8
            start = end
        del rest[:start]
    if rest:
        yield rest.decode("utf-8", "replace")


def _piece_end(text: bytearray) -> int:
    """Bytes of the piece at the beginning of ``text``, which has one byte more than the longest piece."""
    end = text.rfind(b"\n", 1, -1)
    while end > 0 and (text[end - 1] in _BLANK or text[end + 1] in _BLANK):
        end = text.rfind(b"\n", 1, end)
    if end < 0:
        end = text.rfind(b"\n", 0, -1)
    if end >= 0:
        return end + 1
    end = len(text) - 1
    while end > 1 and text[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return end


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> SubwordTokenizer:
    """Train a byte-level BPE tokenizer of at most ``vocabulary`` tokens: the same file for the same ``texts``.

    Words are split as GPT-2 does (Radford et al. 2019). Token 0 is `END_OF_TEXT`, and the next 256 are the bytes, so
    that every text can be encoded and comes back as it was.

    Args:
        texts: Pieces of text.
        vocabulary: At least `SMALLEST`. Small texts have fewer different pairs, and give fewer tokens.

    Raises:
        ValueError: The extra ``tokenizers`` is not installed; and what ``texts`` raises.
    """
    assert vocabulary >= SMALLEST
    _require_library("counterflow tokenize")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer=trainer)
    return SubwordTokenizer(tokenizer.to_str(pretty=True).encode(), "counterflow tokenize")


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == _AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _require_library(name: str) -> None:
    """Raise ``ValueError`` that begins with ``name`` if the extra is not installed."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{name}: needs tokenizers: pip install 'counterflow[tokenizers]'") from error
