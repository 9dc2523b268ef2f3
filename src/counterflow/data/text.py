"""Text as tokens: the files below ``data.root``, or the source of the running Python's standard library.

Tokens are the bytes of UTF-8, or subwords by ``data.tokenizer``, and one more ends every document. They are written to
the cache once, by one of the processes that need them, and mapped from there.
"""

import codecs
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from math import floor
from pathlib import Path

import numpy as np
import torch

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.token_windows import TYPES, TokenWindows
from counterflow.data.tokenization import SubwordTokenizer, TextTokenizer, load_tokenizer, pieces, train_tokenizer

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
"""The tokenizer's file in a cache."""
_FORMAT = 1
"""Version of the cache's files."""
_BY_FILE = 40
"""From so many files on, whole files are held out; of fewer, a part of each."""
_TEST = 0.05
"""Share of the text that is test data."""
_CHUNK = 1 << 24
"""Bytes that are read at a time."""
_LONGEST = 3600
"""Seconds that a process waits for another one that writes the same cache."""
_VERIFIED = 256 << 20
"""Bytes up to which the files of a cache are compared with their checksums before every run."""
_SPECIMEN = "Größe \u2126 = 5 €\n\n\tif x:  # 日本語\r\n"
"""Text that comes back from a tokenizer only if that loses nothing: characters, blanks, and compositions."""
_log = logging.getLogger(__name__)
_TESTS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
"""Folders that are left out of the standard library."""


@dataclass(frozen=True)
class Manifest:
    """Content of a cache."""

    format: int
    tokens: dict[str, int]
    """Tokens of every split."""
    bytes: dict[str, int]
    """Bytes of the text of every split."""
    sha256: dict[str, str]
    """Checksum of the file of every split."""
    type: str = "uint8"
    """Type of the tokens in the files."""
    tokenizer: str = ""
    """Checksum of the tokenizer's file; empty for bytes."""

    @property
    def digest(self) -> str:
        """One checksum for all."""
        sums = [*(self.sha256[name] for name in SPLITS), self.tokenizer]
        return hashlib.sha256("".join(sums).encode()).hexdigest()


def load(config: DataConfig) -> Dataset:
    """Windows of ``data.length`` tokens and, as labels, the token after each.

    The test data is 5 % of the text, and ``data.validation`` of it is held out: whole files at even distances in the
    order of their names, or the ends of each where there are few. Hidden files are left out. The root may also be the
    folder of a cache, whose shares are settled.

    Raises ``ValueError`` if there is no text, if a file is no UTF-8 or changes meanwhile, or if a split is shorter than
    a window.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    root, paths = _sources(config)
    if config.name == "text" and (root / MANIFEST).is_file():
        folder, found = root, _read_manifest(root)
        if found is None:
            raise ValueError(f"data.root={config.root}: its files are not the tokens that {MANIFEST} describes")
        if found.tokenizer != tokenizer.sha256:
            theirs = f"data.tokenizer={root / TOKENIZER}" if found.tokenizer else "bytes, no data.tokenizer"
            raise ValueError(f"data.tokenizer={config.tokenizer}: data.root={config.root} has tokens of {theirs}")
        manifest = found
    else:
        _require_text(config, paths)
        folder, manifest = _cached(root, paths, config, tokenizer)
    splits: dict[str, Split | None] = {}
    for name in SPLITS:
        most = config.limit if name == "train" else config.evaluated
        windows = TokenWindows(folder / f"{name}.bin", manifest.type, config.length, most=most)
        if not len(windows) and not (name == "validation" and not config.validation):
            raise ValueError(
                f"data.length={config.length}: must be less than {manifest.tokens[name]}, the tokens of the {name} data"
            )
        splits[name] = Split(windows, windows.labels()) if len(windows) else None
    limit = config.limit
    if limit is not None and limit > len(splits["train"] or ()):
        raise ValueError(f"data.limit={limit}: must be at most {len(splits['train'] or ())}, the windows of training")
    train = splits["train"]
    assert train is not None
    return Dataset(
        train,
        splits["test"],
        tokenizer.vocabulary,
        splits["validation"],
        tokens_per_byte={name: manifest.tokens[name] / manifest.bytes[name] for name in SPLITS if splits[name]},
        tokenizer=tokenizer.content,
        content=manifest.digest,
    )


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that was trained on a text, and how well it does on the rest."""

    tokenizer: SubwordTokenizer
    tokens: int
    """Tokens of the held-out text, with those that end documents."""
    bytes: int
    """Bytes of the held-out text."""


def train_on(config: DataConfig, vocabulary: int) -> TrainedTokenizer:
    """Train a tokenizer on the training part of a text, which is that of a training run with the same options.

    Args:
        config: ``data=text`` or ``data=stdlib``, whose ``validation`` is held out.
        vocabulary: Tokens at most, as `train_tokenizer` takes them.

    Raises:
        ValueError: There is no text, no text is held out, a file is no UTF-8, or the extra ``tokenizers`` is missing.
    """
    root, paths = _sources(config)
    _require_text(config, paths)

    def documents(split: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        found = _documents(root, paths, config.validation, whole_characters=True)
        return ((size, chunks) for name, size, chunks in found if name == split)

    tokenizer = train_tokenizer((text for _, chunks in documents("train") for text in pieces(chunks)), vocabulary)
    tokens = text = 0
    for size, chunks in documents("validation"):
        tokens += 1 + sum(map(len, tokenizer.encode(chunks)))
        text += size
    if not text:
        raise ValueError(f"data.validation={config.validation}: leaves no held-out text")
    return TrainedTokenizer(tokenizer, tokens, text)


def _sources(config: DataConfig) -> tuple[Path, list[Path]]:
    """The folder of the text, and its files in the order of their names."""
    if config.name == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        return root, [path for path in sorted(root.rglob("*.py")) if not _TESTS & set(path.relative_to(root).parts)]
    root = Path(os.path.expanduser(config.root))
    if not root.exists():
        raise ValueError(f"data.root={config.root}: is not there; allowed are a text file and a folder of them")
    if root.is_file():
        return root.parent, [root]
    return root, sorted(path for path in root.rglob("*") if _is_text(path, root))


def _require_text(config: DataConfig, paths: Sequence[Path]) -> None:
    if not any(path.stat().st_size for path in paths):
        raise ValueError(f"data.root={config.root}: holds no text")


def _is_text(path: Path, root: Path) -> bool:
    """Files that programs keep for themselves are none."""
    return path.is_file() and not any(part[0] == "." or part == "__pycache__" for part in path.relative_to(root).parts)


def windows_of(path: Path, length: int, tokenizer: TextTokenizer) -> tuple[Split, float]:
    """The whole windows of ``length`` tokens of one text file, in memory; and its tokens for a byte.

    Raises ``ValueError`` if it has none or is no UTF-8, and ``OSError`` if it cannot be read.
    """
    size = path.stat().st_size
    read = _checked(path, path.parent)
    found = [*tokenizer.encode(_document(read, size, last=True)), np.array([tokenizer.end])]
    tokens = torch.from_numpy(np.concatenate(found).astype(np.int64))
    windows = (len(tokens) - 1) // length
    if not windows:
        kind = "tokens" if tokenizer.content else "bytes"
        raise ValueError(f"{path}: has {len(tokens) - 1} {kind}: must have at least {length}, those of a window")
    split = Split(*(tokens[shift : shift + windows * length].view(windows, length) for shift in (0, 1)))
    return split, len(tokens) / size


def _cached(root: Path, paths: Sequence[Path], config: DataConfig, tokenizer: TextTokenizer) -> tuple[Path, Manifest]:
    """The folder of the cache, which is written if there is none or if it is damaged."""
    listing = [(str(path.relative_to(root)), *_state(path)) for path in paths]
    described = [_FORMAT, str(root), config.validation, listing, *([tokenizer.sha256] if tokenizer.sha256 else [])]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    cache = Path(os.path.expanduser(config.cache))
    folder = cache / f"{config.name}-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{folder.name}.lock"):
            manifest = _read_manifest(folder)
            if manifest is None:
                shutil.rmtree(folder, ignore_errors=True)
                manifest = _write(folder, root, paths, config.validation, tokenizer)
                changed = next(
                    (p for p, (_, *state) in zip(paths, listing, strict=True) if [*_state(p)] != state), None
                )
                if changed is not None:
                    shutil.rmtree(folder)
                    raise ValueError(f"data.root={config.root}: {changed.relative_to(root)} changed while it was read")
                if isinstance(tokenizer, SubwordTokenizer) and not tokenizer.keeps(_SPECIMEN):
                    _log.warning(
                        f"data.tokenizer={config.tokenizer}: loses parts of a text: bits per byte do not compare"
                    )
    except OSError as error:
        raise ValueError(f"data.cache={config.cache}: cannot be written ({error.strerror or error})") from error
    return folder, manifest


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file ``path``, which one process at a time does."""
    with path.open("w") as file:
        deadline = time.monotonic() + _LONGEST
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(f"{path}: another process has held it for {_LONGEST} s") from None
                time.sleep(0.05)
        yield


def _read_manifest(folder: Path) -> Manifest | None:
    """The manifest of ``folder``; None if there is none, or if the files are not those that it describes."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
        for name in SPLITS:
            path = folder / f"{name}.bin"
            size = path.stat().st_size
            expected = manifest.tokens[name] * np.dtype(manifest.type).itemsize
            if size != expected or (size <= _VERIFIED and _sha256(path) != manifest.sha256[name]):
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.format == _FORMAT and manifest.type in TYPES else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, root: Path, paths: Sequence[Path], validation: float, tokenizer: TextTokenizer) -> Manifest:
    """Write the tokens of ``paths``; ``folder`` appears when it is complete."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    kind, subwords = np.dtype(tokenizer.type).newbyteorder("<"), tokenizer.content is not None
    try:
        text, tokens = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / f"{name}.bin").open("wb")) for name in SPLITS}
            for name, size, chunks in _documents(root, paths, validation, whole_characters=subwords):
                for found in chain(tokenizer.encode(chunks), [np.array([tokenizer.end])]):
                    files[name].write(found.astype(kind).tobytes())
                    tokens[name] += len(found)
                text[name] += size
        manifest = Manifest(
            _FORMAT,
            tokens,
            text,
            {name: _sha256(scratch / f"{name}.bin") for name in SPLITS},
            tokenizer.type,
            tokenizer.sha256,
        )
        if tokenizer.content is not None:
            (scratch / TOKENIZER).write_bytes(tokenizer.content)
        (scratch / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return manifest


def _documents(
    root: Path, paths: Sequence[Path], validation: float, *, whole_characters: bool
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """The split, the bytes and the content, which is to be read at once, of every part of every file that has any.

    Parts of a file may end within a character, unless they shall have ``whole_characters``.

    Raises ``ValueError`` that names the first wrong byte of a file that is no UTF-8.
    """
    for number, path in enumerate(paths):
        read = _checked(path, root)
        parts = _parts(path.stat().st_size, number, len(paths), validation)
        if whole_characters:
            parts = _whole_characters(path, parts)
        for index, (name, size) in enumerate(parts):
            chunks = _document(read, size, last=index == len(parts) - 1)
            if size:
                yield name, size, chunks
            for _ in chunks:  # what the reader has not taken
                pass


def _document(read: Callable[[int], bytes], size: int, *, last: bool) -> Iterator[bytes]:
    """The next ``size`` bytes of a file, a chunk at a time; the ``last`` ones must end with a whole character."""
    while size and (chunk := read(min(size, _CHUNK))):
        yield chunk
        size -= len(chunk)
    if last:
        read(0)


def _checked(path: Path, root: Path) -> Callable[[int], bytes]:
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
