"""Text as tokens: the files below ``data.root``, or the source of the running Python's standard library.

Tokens are the bytes of UTF-8, and one more that ends every document. They are written to the cache once, by one of
the processes that need them, and mapped from there.
"""

import codecs
import fcntl
import hashlib
import json
import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path

import torch

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.token_windows import TokenWindows

VOCABULARY = 256
"""The values of a byte."""
END = 255
"""The token after every document: no text in UTF-8 has this byte."""
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"
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

    @property
    def digest(self) -> str:
        """One checksum for all."""
        return hashlib.sha256("".join(self.sha256[name] for name in SPLITS).encode()).hexdigest()


def load(config: DataConfig) -> Dataset:
    """Windows of ``data.length`` tokens and, as labels, the token after each.

    The test data is 5 % of the text, and ``data.validation`` of it is held out: whole files at even distances in the
    order of their names, or the ends of each where there are few. Hidden files are left out. The root may also be the
    folder of a cache, whose shares are settled.

    Raises ``ValueError`` if there is no text, if a file is no UTF-8 or changes meanwhile, or if a split is shorter than
    a window.
    """
    if config.name == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in sorted(root.rglob("*.py")) if not _TESTS & set(path.relative_to(root).parts)]
    else:
        root = Path(os.path.expanduser(config.root))
        if not root.exists():
            raise ValueError(f"data.root={config.root}: is not there; allowed are a text file and a folder of them")
        paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _is_text(path, root))
        root = root.parent if root.is_file() else root
    if config.name == "text" and (root / MANIFEST).is_file():
        folder, found = root, _read_manifest(root)
        if found is None:
            raise ValueError(f"data.root={config.root}: its files are not the tokens that {MANIFEST} describes")
        manifest = found
    else:
        if not any(path.stat().st_size for path in paths):
            raise ValueError(f"data.root={config.root}: holds no text")
        folder, manifest = _cached(root, paths, config)
    splits: dict[str, Split | None] = {}
    for name in SPLITS:
        most = config.limit if name == "train" else config.evaluated
        windows = TokenWindows(folder / f"{name}.bin", "uint8", config.length, most=most)
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
        VOCABULARY,
        splits["validation"],
        tokens_per_byte=sum(manifest.tokens.values()) / sum(manifest.bytes.values()),
        content=manifest.digest,
    )


def _is_text(path: Path, root: Path) -> bool:
    """Files that programs keep for themselves are none."""
    return path.is_file() and not any(part[0] == "." or part == "__pycache__" for part in path.relative_to(root).parts)


def windows_of(path: Path, length: int) -> Split:
    """The whole windows of one text file, in memory.

    Raises ``ValueError`` if it has none or is no UTF-8, and ``OSError`` if it cannot be read.
    """
    read = _checked(path, path.parent)
    content = bytearray(read(path.stat().st_size) + read(0) + bytes([END]))
    tokens = torch.frombuffer(content, dtype=torch.uint8).long()
    windows = (len(tokens) - 1) // length
    if not windows:
        raise ValueError(f"{path}: has {len(tokens) - 1} bytes: must have at least {length}, those of a window")
    return Split(*(tokens[shift : shift + windows * length].view(windows, length) for shift in (0, 1)))


def _cached(root: Path, paths: Sequence[Path], config: DataConfig) -> tuple[Path, Manifest]:
    """The folder of the cache, which is written if there is none or if it is damaged."""
    listing = [(str(path.relative_to(root)), *_state(path)) for path in paths]
    key = hashlib.sha256(json.dumps([_FORMAT, str(root), config.validation, listing]).encode()).hexdigest()[:16]
    cache = Path(os.path.expanduser(config.cache))
    folder = cache / f"{config.name}-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{folder.name}.lock"):
            manifest = _read_manifest(folder)
            if manifest is None:
                shutil.rmtree(folder, ignore_errors=True)
                manifest = _write(folder, root, paths, config.validation)
                changed = next(
                    (p for p, (_, *state) in zip(paths, listing, strict=True) if [*_state(p)] != state), None
                )
                if changed is not None:
                    shutil.rmtree(folder)
                    raise ValueError(f"data.root={config.root}: {changed.relative_to(root)} changed while it was read")
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
            if size != manifest.tokens[name] or (size <= _VERIFIED and _sha256(path) != manifest.sha256[name]):
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.format == _FORMAT else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, root: Path, paths: Sequence[Path], validation: float) -> Manifest:
    """Write the tokens of ``paths``; ``folder`` appears when it is complete."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        text = dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / f"{name}.bin").open("wb")) for name in SPLITS}
            for number, path in enumerate(paths):
                content = _checked(path, root)
                for name, size in _parts(path.stat().st_size, number, len(paths), validation):
                    left = size
                    while left and (chunk := content(min(left, _CHUNK))):
                        files[name].write(chunk)
                        left -= len(chunk)
                    text[name] += size - left
                    files[name].write(bytes([END]) if size else b"")
                content(0)
        manifest = Manifest(
            _FORMAT,
            {name: (scratch / f"{name}.bin").stat().st_size for name in SPLITS},
            text,
            {name: _sha256(scratch / f"{name}.bin") for name in SPLITS},
        )
        (scratch / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return manifest


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


def _parts(size: int, number: int, files: int, validation: float) -> Iterable[tuple[str, int]]:
    """The splits that file ``number`` of ``files``, of ``size`` bytes, belongs to in turn, with the bytes of each."""
    if files >= _BY_FILE:
        for name, share, offset in (("test", _TEST, 0.0), ("validation", validation, 0.5)):
            if floor((number + 1) * share + offset) > floor(number * share + offset):
                return [(name, size)]
        return [("train", size)]
    test, held_out = (floor(size * share) for share in (_TEST, validation))
    return [("train", size - test - held_out), ("validation", held_out), ("test", test)]
