"""The command ``counterflow tokenize``: the same file twice, and one line for what it refuses."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import counterflow as cf
from counterflow.cli import tokenize
from tests.helpers.launch import MAIN, forked

SOURCE = Path(cf.__file__).parent / "algorithms"


def test_two_processes_write_the_same_tokenizer(tmp_path: Path) -> None:
    """And say what it reaches on the held-out text, as counted by the library."""
    for name in ("one", "two"):
        done = forked(
            MAIN, "tokenize", "--root", str(SOURCE), "--vocabulary", "300", "--out", f"{name}.json", cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    tokenizer = Tokenizer.from_file(str(tmp_path / "two.json"))
    assert tokenizer.get_vocab_size() == 300
    contents = [path.read_bytes() for path in sorted(SOURCE.glob("*.py"))]
    parts = []
    for content in contents:  # 5 % of each before the last 5 %; all of it is ASCII
        assert content.isascii()
        test, held_out = int(0.05 * len(content)), int(0.05 * len(content))
        parts.append(content[len(content) - test - held_out : len(content) - test].decode())
    size, tokens = sum(map(len, parts)), sum(1 + len(tokenizer.encode(part).ids) for part in parts)
    assert (
        done.stdout
        == f"two.json: 300 tokens; {size / tokens:.3f} bytes a token on the held-out text of {size:,} bytes\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vocabulary", "256"), "--vocabulary=256: must be at least 257 and at most 1048576"),
        (("--vocabulary", "x"), "argument --vocabulary: x: must be a whole number of at least 1"),
        (("--validation", "0"), "argument --validation: 0: must be greater than 0 and below 1"),
        (("--data", "stdlib"), "--root: is the text of --data text, and of nothing else"),
        (("--out", "nowhere/a.json"), "--out=nowhere/a.json: its folder is not there"),
        (("--out", "text/a.json"), "--out=text/a.json: must be outside of --root=text, whose files are the text"),
        (("--root", "nope"), "data.root=nope: is not there; allowed are a text file and a folder of them"),
        (("--root", "empty"), "data.root=empty: holds no text"),
        (("--root", "bad"), r"data.root=\S+: a is no UTF-8: its byte 2 is 0xfc"),
        (("--root", "short"), "data.validation=0.05: leaves no held-out text"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_no_file(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, content in {"text": b"some text\n" * 9, "empty": b"", "bad": b"gr\xfc\xdfe", "short": b"ab"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        tokenize.main(["--root", "text", "--out", "a.json", *arguments])
    assert stop.value.code == 2
    assert re.fullmatch(rf"error: {message}\n", capsys.readouterr().err)
    assert not list(tmp_path.rglob("*.json"))
