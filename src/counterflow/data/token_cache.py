"""Cache of the tokens of a text: a file for each split and a manifest, written once by one process."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from counterflow.checksum import sha256
from counterflow.config import DataConfig
from counterflow.data.documents import SPLITS, documents
from counterflow.data.token_windows import TYPES
from counterflow.data.tokenization import SubwordTokenizer, TextTokenizer

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
"""The tokenizer's file in a cache."""
_FORMAT = 1
"""Version of the cache's files."""
_LONGEST = 3600
"""Seconds that a process waits for another one that writes the same cache."""
_VERIFIED = 256 << 20
"""Bytes up to which the files of a cache are compared with their checksums before every run."""
_SPECIMEN = "Größe \u2126 = 5 €\n\n\tif x:  # 日本語\r\n"
"""Text that comes back from a tokenizer only if that loses nothing: characters, blanks, and compositions."""
_log = logging.getLogger(__name__)


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


def cached_tokens(
    root: Path, paths: Sequence[Path], config: DataConfig, tokenizer: TextTokenizer
) -> tuple[Path, Manifest]:
    """The folder of the cache of ``paths``, files below ``root``, and its manifest. Written if missing or damaged.

    Raises ``ValueError`` if a file is no UTF-8 or changes meanwhile, or if the cache cannot be written.
    """
    listing = [(str(path.relative_to(root)), *_state(path)) for path in paths]
    described = [_FORMAT, str(root), config.validation, listing, *([tokenizer.sha256] if tokenizer.sha256 else [])]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    cache = Path(os.path.expanduser(config.cache))
    folder = cache / f"{config.name}-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{folder.name}.lock"):
            manifest = read_manifest(folder)
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


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of ``folder``; None if there is none, or if the files are not those that it describes."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
        for name in SPLITS:
            path = folder / f"{name}.bin"
            size = path.stat().st_size
            expected = manifest.tokens[name] * np.dtype(manifest.type).itemsize
            if size != expected or (size <= _VERIFIED and sha256(path) != manifest.sha256[name]):
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.format == _FORMAT and manifest.type in TYPES else None


def _write(folder: Path, root: Path, paths: Sequence[Path], validation: float, tokenizer: TextTokenizer) -> Manifest:
    """Write the tokens of ``paths``; ``folder`` appears when it is complete."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    kind, subwords = np.dtype(tokenizer.type).newbyteorder("<"), tokenizer.content is not None
    try:
        text, tokens = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / f"{name}.bin").open("wb")) for name in SPLITS}
            for name, size, chunks in documents(root, paths, validation, whole_characters=subwords):
                for found in chain(tokenizer.encode(chunks), [np.array([tokenizer.end])]):
                    files[name].write(found.astype(kind).tobytes())
                    tokens[name] += len(found)
                text[name] += size
        manifest = Manifest(
            _FORMAT,
            tokens,
            text,
            {name: sha256(scratch / f"{name}.bin") for name in SPLITS},
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
