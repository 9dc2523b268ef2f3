"""Text as tokens: the files below ``data.root``, or the source of the running Python's standard library.

Tokens are the bytes of UTF-8, or subwords by ``data.tokenizer``, and one more ends every document. They are written to
the cache once, by one of the processes that need them, and mapped from there.
"""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from counterflow.config import DataConfig
from counterflow.data.dataset import Dataset, Split
from counterflow.data.documents import SPLITS, checked_reader, documents, read_document
from counterflow.data.token_cache import MANIFEST, TOKENIZER, cached_tokens, read_manifest
from counterflow.data.token_windows import TokenWindows
from counterflow.data.tokenization import SubwordTokenizer, TextTokenizer, load_tokenizer, pieces, train_tokenizer

_TESTS = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
"""Folders that are left out of the standard library."""


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
        folder, found = root, read_manifest(root)
        if found is None:
            raise ValueError(f"data.root={config.root}: its files are not the tokens that {MANIFEST} describes")
        if found.tokenizer != tokenizer.sha256:
            raise ValueError(
                f"data.tokenizer={config.tokenizer or 'null'}: is not that of the tokens in data.root={config.root}, "
                f"allowed is {root / TOKENIZER if found.tokenizer else 'null'}"
            )
        manifest = found
    else:
        _require_text(config, paths)
        folder, manifest = cached_tokens(root, paths, config, tokenizer)
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

    def parts_of(split: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        found = documents(root, paths, config.validation, whole_characters=True)
        return ((size, chunks) for name, size, chunks in found if name == split)

    tokenizer = train_tokenizer((text for _, chunks in parts_of("train") for text in pieces(chunks)), vocabulary)
    tokens = text = 0
    for size, chunks in parts_of("validation"):
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
    read = checked_reader(path, path.parent)
    found = [*tokenizer.encode(read_document(read, size, last=True)), np.array([tokenizer.end])]
    tokens = torch.from_numpy(np.concatenate(found).astype(np.int64))
    windows = (len(tokens) - 1) // length
    if not windows:
        kind = "tokens" if tokenizer.content else "bytes"
        raise ValueError(f"{path}: has {len(tokens) - 1} {kind}: must have at least {length}, those of a window")
    split = Split(*(tokens[shift : shift + windows * length].view(windows, length) for shift in (0, 1)))
    return split, len(tokens) / size
