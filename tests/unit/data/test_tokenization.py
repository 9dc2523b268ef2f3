"""Tokenizers of text: subwords beside a direct encoding by the library, pieces, streams, and what is refused."""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import counterflow as cf
from counterflow.config import DATA, DataConfig
from counterflow.data import documents, text, token_cache, tokenization
from counterflow.data.tokenization import END_OF_TEXT, ByteTokenizer, SubwordTokenizer, pieces, train_tokenizer

SOURCE = sorted((Path(cf.__file__).parent / "algorithms").glob("*.py"))
CODE = [path.read_text() for path in SOURCE]
UNICODE = "größer als 5 €\n\n日本語 heißt: \N{GRINNING FACE}!\n\tx = 1  # fin\n"


@pytest.fixture(scope="module")
def bpe() -> SubwordTokenizer:
    return train_tokenizer([*CODE, UNICODE], 500)


@pytest.fixture
def config(tmp_path: Path, bpe: SubwordTokenizer) -> DataConfig:
    (tmp_path / "text").mkdir()
    (tmp_path / "bpe.json").write_bytes(bpe.content or b"")
    return replace(
        DATA["text"],
        root=str(tmp_path / "text"),
        cache=str(tmp_path / "cache"),
        tokenizer=str(tmp_path / "bpe.json"),
        length=8,
    )


def directly(content: bytes | None) -> Tokenizer:
    """The library's own object, of which special tokens in a text are text."""
    assert content is not None
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True
    return tokenizer


def write(config: DataConfig, contents: list[str]) -> None:
    for number, content in enumerate(contents):
        (Path(config.root) / f"{number:03}").write_bytes(content.encode())


def cached(config: DataConfig, kind: str = "<u2") -> dict[str, list[int]]:
    (folder,) = (path for path in Path(config.cache).iterdir() if path.is_dir())
    return {split: np.fromfile(folder / f"{split}.bin", kind).tolist() for split in documents.SPLITS}


def test_every_document_has_the_tokens_of_its_whole_text(config: DataConfig, bpe: SubwordTokenizer) -> None:
    """Of 60 files, in the order of their names, 3 are test data and 3 held out, as those of bytes."""
    contents = [f"{UNICODE * (1 + number % 3)}{number}" for number in range(60)]
    write(config, contents)
    dataset = text.load(config)
    found, library = cached(config), directly(bpe.content)
    expected: dict[str, list[int]] = {split: [] for split in documents.SPLITS}
    sizes = dict.fromkeys(documents.SPLITS, 0)
    for number, content in enumerate(contents):
        split = {19: "test", 39: "test", 59: "test", 9: "validation", 29: "validation", 49: "validation"}.get(number)
        expected[split or "train"] += [*library.encode(content).ids, bpe.end]
        sizes[split or "train"] += len(content.encode())
    assert found == expected
    assert dataset.classes == library.get_vocab_size() == 500
    assert dataset.tokens_per_byte == {split: len(expected[split]) / sizes[split] for split in documents.SPLITS}
    inputs, labels = dataset.train.rows(slice(0, 2))
    assert [inputs.flatten().tolist(), labels.flatten().tolist()] == [expected["train"][:16], expected["train"][1:17]]


def test_parts_of_a_file_have_whole_characters(config: DataConfig, bpe: SubwordTokenizer) -> None:
    """Wherever 5 % of a text of characters of two and three bytes end."""
    library = directly(bpe.content)
    for length in range(40, 60):
        content = "ö€" * length
        write(config, [content])
        parts = documents._whole_characters(
            Path(config.root) / "000", documents._parts(5 * length, 0, 1, config.validation)
        )
        text.load(replace(config, length=1, cache=f"{config.cache}{length}"))
        found = cached(replace(config, cache=f"{config.cache}{length}"))
        texts = [library.decode(found[split], skip_special_tokens=True) for split in documents.SPLITS]
        assert "".join(texts) == content
        assert [len(part.encode()) for part in texts] == [size for _, size in parts]
        assert found["train"] == [*library.encode(texts[0]).ids, bpe.end]


def test_bytes_of_a_text_are_split_as_ever(config: DataConfig) -> None:
    """Also within a character: caches of bytes, and runs on them, stay what they are."""
    write(config, ["ö" * 50])
    text.load(replace(config, tokenizer=None, length=1))
    assert [len(part) for part in cached(config, "u1").values()] == [90 + 1, 5 + 1, 5 + 1]


def test_special_tokens_in_a_text_are_text(config: DataConfig, bpe: SubwordTokenizer) -> None:
    content = f"a {END_OF_TEXT} b"
    write(config, [content] * 45)
    text.load(replace(config, length=2))
    assert cached(config)["validation"].count(bpe.end) == 2, "the ends of two documents"
    (tokens,) = bpe.encode([content.encode()])
    assert bpe.end not in tokens
    assert bpe.decode(tokens.tolist()) == content


@pytest.mark.parametrize("size", [40, 64, 333, 5000])
def test_pieces_change_no_token_where_lines_begin_and_end_with_characters(
    bpe: SubwordTokenizer, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the code of this package's rules, in chunks that end anywhere, beside the library on the whole text."""
    whole = "".join(f"{line.strip()}\n" for code in CODE for line in code.splitlines() if 0 < len(line.strip()) < size)
    monkeypatch.setattr(tokenization, "_PIECE", size)
    content = whole.encode()
    chunks = [content[start : start + 777] for start in range(0, len(content), 777)]
    found = [token for tokens in bpe.encode(chunks) for token in tokens.tolist()]
    assert found == directly(bpe.content).encode(whole).ids


@given(
    content=st.text(alphabet="ab \nö€", max_size=60),
    size=st.integers(4, 12),
    chunk=st.integers(1, 70),
)
def test_pieces_are_a_function_of_the_text(content: str, size: int, chunk: int) -> None:
    """Found again by trying every end: the last best one of the bytes that a piece may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE", size)
        rest = content.encode()
        found = list(pieces(rest[start : start + chunk] for start in range(0, len(rest), chunk)))
    assert "".join(found) == content
    for piece in found[:-1]:
        ends = [end for end in range(1, size + 1) if rest[end] & 0xC0 != 0x80]
        after_line = [end for end in ends if rest[end - 1] == ord("\n")]
        words = [end for end in after_line if end > 1 and rest[end - 2] > ord(" ") and rest[end] > ord(" ")]
        assert len(piece.encode()) == (words or after_line or ends)[-1]
        rest = rest[len(piece.encode()) :]
    assert len(rest) <= size


@pytest.mark.parametrize("tokenizer", ["bytes", "smallest", "bpe"])
def test_a_stream_gives_each_character_when_it_is_whole(tokenizer: str, bpe: SubwordTokenizer) -> None:
    chosen = {"bytes": ByteTokenizer(), "smallest": train_tokenizer([], 257), "bpe": bpe}[tokenizer]

    def encoded(content: str) -> list[int]:
        return [int(token) for found in chosen.encode([content.encode()]) for token in found]

    stream, tokens = chosen.stream(encoded("gr")), encoded(UNICODE[2:])
    shown = [stream.add(token) for token in tokens]
    assert ("".join(shown), stream.finish()) == (UNICODE[2:], "")
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown)
    if tokenizer != "bpe":
        assert shown.count("") == len(UNICODE.encode()) - len(UNICODE), "within a character"
        half = encoded("x€")[:3]
        assert [stream.add(token) for token in half] == ["x", "", ""]
        assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_training_twice_gives_the_same_file(bpe: SubwordTokenizer) -> None:
    again = train_tokenizer(iter([*CODE, UNICODE]), 500)
    assert again.content == bpe.content
    assert (again.vocabulary, again.end, again.type) == (500, 0, "uint16")
    assert train_tokenizer([], 257).vocabulary == 257, "bytes, and the end"


def test_a_tokenizer_is_trained_on_the_training_part_alone(config: DataConfig) -> None:
    """As on those files by themselves; the rest measures it."""
    contents = [f"{'x' * number} {UNICODE}" for number in range(60)]
    write(config, contents)
    trained = text.train_on(config, 400)
    held_out, test = [contents[i] for i in (9, 29, 49)], [contents[i] for i in (19, 39, 59)]
    own = train_tokenizer([c for c in contents if c not in held_out + test], 400)
    assert trained.tokenizer.content == own.content
    assert own.content != train_tokenizer(contents, 400).content
    library = directly(own.content)
    assert trained.tokens == sum(1 + len(library.encode(content).ids) for content in held_out)
    assert trained.bytes == sum(len(content.encode()) for content in held_out)


def test_large_vocabularies_have_wider_tokens(config: DataConfig, tmp_path: Path) -> None:
    """Of words, up to the last of 70,000."""
    path = tmp_path / "words.json"
    words = {END_OF_TEXT: 0, **{f"w{number}": number for number in range(1, 70_000)}}
    path.write_text(json.dumps(_words(words)))
    write(config, ["w69999 w65536 w65535 w1 w2 w3"] * 45)
    config = replace(config, tokenizer=str(path), length=2)
    dataset = text.load(config)
    assert cached(config, "<u4")["train"][:7] == [69999, 65536, 65535, 1, 2, 3, 0]
    assert dataset.classes == 70_000
    assert dataset.train.rows(slice(0, 1))[0].tolist() == [[69999, 65536]]


def _words(vocabulary: dict[str, int], special: bool = True) -> dict[str, object]:
    """The file of a tokenizer of words between blanks."""
    end = {"id": 0, "content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None,
        "added_tokens": [{**end, "normalized": False, "special": special}] if END_OF_TEXT in vocabulary else [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w1"},
    }


def test_a_tokenizer_that_loses_text_is_noted_once(
    config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "words.json").write_text(json.dumps(_words({END_OF_TEXT: 0, "w1": 1})))
    write(config, [UNICODE] * 45)
    with caplog.at_level(logging.WARNING):
        text.load(config)
        assert not caplog.messages
        lossy = replace(config, tokenizer=str(tmp_path / "words.json"), length=2)
        text.load(lossy)
        text.load(lossy)
    (line,) = caplog.messages
    assert line == f"data.tokenizer={lossy.tokenizer}: loses parts of a text: bits per byte do not compare"


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    return


@pytest.mark.usefixtures("uninstalled")
def test_the_extra_may_be_missing(config: DataConfig) -> None:
    write(config, [UNICODE] * 9)
    message = r"needs tokenizers: pip install 'counterflow\[tokenizers\]'$"
    with pytest.raises(ValueError, match=rf"^data.tokenizer=\S+bpe.json: {message}"):
        text.load(config)
    with pytest.raises(ValueError, match=f"^counterflow tokenize: {message}"):
        text.train_on(config, 300)
    assert text.load(replace(config, tokenizer=None)).classes == 256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        ("", "is damaged, or no tokenizer of Hugging Face's tokenizers .+"),
        ("{}", "is damaged, or no tokenizer of Hugging Face's tokenizers .+"),
        ("\0" * 99, "is damaged, or no tokenizer of Hugging Face's tokenizers .+"),
        (json.dumps(_words({"w1": 0})), r"has no special token <\|endoftext\|>, which must end every document"),
        (
            json.dumps(_words({END_OF_TEXT: 0, "w1": 1}, special=False)),
            r"has no special token <\|endoftext\|>, which must end every document",
        ),
    ],
)
def test_files_that_are_no_tokenizer(config: DataConfig, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    write(config, [UNICODE] * 9)
    with pytest.raises(ValueError, match=rf"^data.tokenizer={path}: {message}$"):
        text.load(replace(config, tokenizer=str(path)))
    assert not Path(config.cache).exists()


def test_half_a_file_is_refused(config: DataConfig, bpe: SubwordTokenizer) -> None:
    assert bpe.content is not None
    Path(config.tokenizer or "").write_bytes(bpe.content[: len(bpe.content) // 2])
    with pytest.raises(ValueError, match=r"^data.tokenizer=\S+: is damaged, or no tokenizer of Hugging Face's .+\)$"):
        text.load(config)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([b"x" * 90, b"gr\xfc\xdfe"], "001 is no UTF-8: its byte 2 is 0xfc"),
        ([b"x" * 90, b"cut \xe2\x82"], "001 is no UTF-8: its byte 4 is 0xe2"),
        ([b"x" * 89 + b"\xe2" + b"y" * 10], "000 is no UTF-8: its byte 89 is 0xe2"),  # at the end of a part
        ([b"\x80" * 90], "000 is no UTF-8: its byte 0 is 0x80"),
    ],
)
def test_what_is_no_utf8_is_named_as_ever(config: DataConfig, files: list[bytes], message: str) -> None:
    for number, content in enumerate(files):
        (Path(config.root) / f"{number:03}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data.root=\S+: {message}$"):
        text.load(config)
    assert not list(Path(config.cache).glob(".*")), "nothing half written stays"


def test_other_data_has_no_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"^data.tokenizer=a.json: is for data=text and data=stdlib, not data=digits$"):
        replace(DATA["digits"], tokenizer="a.json")


def test_a_cache_is_of_its_tokenizer(config: DataConfig, tmp_path: Path) -> None:
    write(config, [UNICODE] * 45)
    whole = text.load(config)
    (folder,) = (path for path in Path(config.cache).iterdir() if path.is_dir())
    moved = folder.rename(tmp_path / "moved")
    again = text.load(replace(config, root=str(moved), tokenizer=str(moved / token_cache.TOKENIZER)))
    assert (again.digest, again.tokens_per_byte, again.tokenizer) == (
        whole.digest,
        whole.tokens_per_byte,
        whole.tokenizer,
    )
    other = tmp_path / "other.json"
    other.write_bytes(train_tokenizer([UNICODE], 300).content or b"")
    for given_path, shown in ((str(other), str(other)), (None, "null")):
        with pytest.raises(
            ValueError,
            match=rf"^data.tokenizer={shown}: is not that of the tokens in data.root={moved}, "
            rf"allowed is {moved}/tokenizer.json$",
        ):
            text.load(replace(config, root=str(moved), tokenizer=given_path))
    text.load(replace(config, tokenizer=None))
    (of_bytes,) = (path for path in Path(config.cache).iterdir() if path.is_dir())
    with pytest.raises(ValueError, match=r"^data.tokenizer=\S+: is not that of the tokens in \S+, allowed is null$"):
        text.load(replace(config, root=str(of_bytes)))


def test_another_tokenizer_is_another_cache(config: DataConfig, tmp_path: Path) -> None:
    """And the same one in another place is the same."""
    write(config, [UNICODE] * 45)
    first = text.load(config)
    copy, other = tmp_path / "copy.json", tmp_path / "other.json"
    copy.write_bytes(first.tokenizer or b"")
    assert text.load(replace(config, tokenizer=str(copy))).digest == first.digest
    assert len([path for path in Path(config.cache).iterdir() if path.is_dir()]) == 1
    other.write_bytes(train_tokenizer([UNICODE], 300).content or b"")
    assert text.load(replace(config, tokenizer=str(other))).digest != first.digest
    assert len([path for path in Path(config.cache).iterdir() if path.is_dir()]) == 2
