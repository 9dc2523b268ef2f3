"""Language models of subwords: the same bits on any number of processes, and a run that keeps its tokenizer."""

import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import counterflow as cf
from counterflow.cli import evaluate, generate
from counterflow.data.tokenization import END_OF_TEXT, train_tokenizer
from counterflow.rank_info import RankInfo
from counterflow.trainer.job_builder import load_job
from tests.distributed.engine.test_language_models import RESULTS, SOURCE, options
from tests.distributed.engine.test_resume import interrupt
from tests.helpers.configs import configured
from tests.helpers.processes import Pool
from tests.helpers.runs import summary_of

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The summary of a small run."""
    folder = tmp_path_factory.mktemp("cache")
    return cache(lambda rule, ranks, *more, **how: summary_of(pool, ranks, *options(folder, rule), *more, **how))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of 400 subwords of the text that is trained on."""
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    texts = [source.read_text() for source in sorted(SOURCE.glob("*.py"))]
    path.write_bytes(train_tokenizer(texts, 400).content or b"")
    return path


@pytest.mark.parametrize(
    ("rule", "more"), [("bll", ()), ("predsim", ()), ("bp", ("schedule=naive", "optimizer.clip=0"))]
)
def test_subwords_too_have_the_same_bits_on_any_number_of_processes(
    run: Run, tokenizer: Path, rule: str, more: tuple[str, ...]
) -> None:
    alone, together = (run(rule, ranks, f"data.tokenizer={tokenizer}", *more) for ranks in (1, 2))
    assert {key: together[key] for key in RESULTS} == {key: alone[key] for key in RESULTS}
    assert alone["fingerprint"] != run(rule, 1, *more)["fingerprint"]
    assert 0 < alone["bits_per_byte"] < 16


@pytest.fixture(scope="module")
def moved(run: Run, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of subwords and its summary, whose tokenizer is not where it was any more."""
    folder = tmp_path_factory.mktemp("moved")
    copy = folder / "bpe.json"
    shutil.copy(tokenizer, copy)
    summary = run("bll", 1, f"data.tokenizer={copy}", directory=folder / "run")
    copy.unlink()
    return folder / "run", summary


def test_a_run_keeps_its_tokenizer_and_has_the_bits_of_its_text(
    moved: tuple[Path, dict[str, Any]], tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Test data by ``counterflow evaluate``; a file by the library's encoding, window by window."""
    folder, summary = moved
    assert (folder / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert evaluate.main([str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-5)
    content = (SOURCE / "bll.py").read_text()
    tokens = torch.tensor([*Tokenizer.from_file(str(tokenizer)).encode(content).ids, 0])
    windows = (len(tokens) - 1) // 16
    inputs, labels = (tokens[shift : shift + 16 * windows].view(windows, 16) for shift in (0, 1))
    nats = F.cross_entropy(cf.load(folder)(inputs).flatten(0, 1), labels.flatten())
    assert evaluate.main([str(folder), "--json", "--text", str(SOURCE / "bll.py")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == windows
    assert found["bits_per_byte"] == pytest.approx(float(nats) / math.log(2) * len(tokens) / len(content.encode()))


def test_generation_by_subwords_goes_to_text_and_back(
    moved: tuple[Path, dict[str, Any]], tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The likeliest tokens, one after the other, up to the end of a text or of the window of training."""
    folder, _ = moved
    library, predictor, generated = Tokenizer.from_file(str(tokenizer)), cf.load(folder), 0
    for prompt in ("def größer", "class ", "import", "\n"):
        tokens = library.encode(prompt).ids
        expected = list(tokens)
        while len(expected) < 16 and (token := int(predictor(torch.tensor([expected]))[0, -1].argmax())):
            expected.append(token)
        generated += len(expected) - len(tokens)
        count = str(16 - len(tokens))
        assert generate.main([str(folder), "--prompt", prompt, "--temperature", "0", "--tokens", count]) == 0
        assert capsys.readouterr().out == library.decode(expected, skip_special_tokens=False) + "\n"
    assert generated, "not all of them end at once"


def _refused(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        command([*arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_other_tokenizers_than_that_of_the_run_are_refused(
    run: Run, moved: tuple[Path, dict[str, Any]], tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = moved
    other = tmp_path / "other.json"
    other.write_bytes(train_tokenizer(["other"], 300).content or b"")
    assert _refused(capsys, evaluate.main, str(folder), f"data.tokenizer={other}") == (
        f"error: data.tokenizer={other}: is not the network's tokenizer, allowed is the one that its run keeps"
    )
    run("bll", 1, directory=tmp_path / "bytes")
    assert _refused(capsys, evaluate.main, str(tmp_path / "bytes"), f"data.tokenizer={tokenizer}") == (
        f"error: data.tokenizer={tokenizer}: is not the network's tokenizer, allowed is none, as its tokens are bytes"
    )
    shutil.copytree(folder, tmp_path / "changed")
    for content, fault in (
        (other.read_bytes(), "is not the file that the run wrote (damaged, or of another run)"),
        (None, "cannot be read (No such file or directory)"),
    ):
        path = tmp_path / "changed" / "tokenizer.json"
        path.unlink() if content is None else path.write_bytes(content)
        for command in (generate.main, evaluate.main):
            assert _refused(capsys, command, str(tmp_path / "changed")) == f"error: {path}: {fault}"


def test_a_run_does_not_go_on_with_another_tokenizer(pool: Pool, tmp_path: Path, tokenizer: Path) -> None:
    """That has taken the place of the file that the run began with."""
    path = tmp_path / "bpe.json"
    shutil.copy(tokenizer, path)
    overrides = (*options(tmp_path / "cache", "predsim"), f"data.tokenizer={path}", "checkpoint.every=4")
    summary_of(pool, 1, *overrides, "checkpoint.keep=9", directory=tmp_path / "run")
    interrupt(tmp_path / "run", 8)
    path.write_bytes(train_tokenizer(["other"], 300).content or b"")
    with pytest.raises(
        AssertionError, match=r"run.resume: \S+ is of another configuration: .*data.tokenizer=\w{16} there"
    ):
        summary_of(pool, 1, *overrides, "checkpoint.keep=9", directory=tmp_path / "run")


def test_code_books_of_many_tokens_go_on_with_the_same_bits(pool: Pool, tmp_path: Path) -> None:
    """Of 1,100: on two processes, and from a checkpoint on one."""
    texts = [source.read_text() for source in sorted(SOURCE.glob("*.py"))]
    (tmp_path / "bpe.json").write_bytes(train_tokenizer(texts, 1100).content or b"")
    overrides = (*options(tmp_path / "cache", "bll"), f"data.tokenizer={tmp_path}/bpe.json", "checkpoint.every=4")
    whole = summary_of(pool, 2, *overrides, "checkpoint.keep=9", directory=tmp_path / "run")
    assert len(cf.load(tmp_path / "run").class_names) == 1100
    interrupt(tmp_path / "run", 8)
    again = summary_of(pool, 1, *overrides, "checkpoint.keep=9", directory=tmp_path / "run")
    assert again["resumed_after"] == 8
    assert {key: again[key] for key in RESULTS} == {key: whole[key] for key in RESULTS}


def test_a_vocabulary_that_code_books_cannot_have_is_one_line(tmp_path: Path) -> None:
    """Before any process group exists; other rules take it."""
    words = {END_OF_TEXT: 0, **{f"w{number}": number for number in range(1, (1 << 15) + 1)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    with_words = (f"data.tokenizer={tmp_path}/words.json", "model.width=2", "model.heads=1", "engine.threads=1")
    with pytest.raises(ValueError, match=r"^algorithm=bll: for 32769 classes .* algorithm=predsim sends labels alone$"):
        load_job(configured(*options(tmp_path / "cache", "bll"), *with_words), RankInfo(0, 1))
    job = load_job(configured(*options(tmp_path / "cache", "predsim"), *with_words), RankInfo(0, 1))
    assert job.task.classes == 32769
