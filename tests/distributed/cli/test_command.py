"""The ``counterflow`` command: one line for a refused option, nothing of the launcher's own, and its help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch import MAIN, forked, forked_ranks

QUICK = ("train.steps=3", "run.display=false")


def counterflow(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "counterflow", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("nope",),
            "error: nope: no such command, allowed are train, sweep, tokenize, plan, bench, doctor, report, export, "
            "predict, generate, evaluate",
        ),
        (("train", "--ranks", "0"), "error: --ranks=0: must be a whole number of at least 1"),
        (("train", "--max-restarts=x"), "error: --max-restarts=x: must be a whole number of at least 0"),
    ],
)
def test_a_refused_argument_is_one_line(arguments: tuple[str, ...], line: str, tmp_path: Path) -> None:
    done = counterflow(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")
    assert not list(tmp_path.iterdir())


def test_a_choice_that_two_ranks_refuse_is_one_line(tmp_path: Path) -> None:
    done = forked_ranks("train", "--ranks", "2", "algorithm=nope", cwd=tmp_path)
    line = "error: algorithm=nope: allowed are al, bll, bp, custom, fa, predsim\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not list(tmp_path.iterdir())


def test_two_ranks_give_the_bits_of_one(tmp_path: Path) -> None:
    alone = forked(MAIN, "train", *QUICK, "run.dir=1", cwd=tmp_path)
    together = forked(MAIN, "train", "--ranks", "2", *QUICK, "run.dir=2", cwd=tmp_path)  # starts new interpreters
    for done in (alone, together):
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    one, two = (json.loads((tmp_path / ranks / "summary.json").read_text()) for ranks in ("1", "2"))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["fingerprint"] == two["fingerprint"]


def test_a_rank_that_fails_gives_the_status_and_its_own_lines(tmp_path: Path) -> None:
    diverge = ("optimizer=sgd", "optimizer.lr=1e6", "model.norm=none", "train.steps=20", "run.display=false")
    done = forked_ranks("train", "--ranks", "2", *diverge, cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: rank ") for line in lines)
    assert any("FloatingPointError: the loss is" in line for line in lines)


def test_help_names_real_choices(tmp_path: Path) -> None:
    done = forked(MAIN, "train", "--ranks", "4", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Train one network on many processes without the backward lock.\n")
    assert "_schema" not in done.stdout
    assert "Hydra" not in done.stdout
    assert "algorithm: al, bll, bp, custom, fa, predsim\n" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["train", "sweep", "tokenize", "plan", "bench", "doctor", "report", "export", "predict", "generate", "evaluate"],
)
def test_help_fits_a_screen_and_shows_two_examples(command: str, tmp_path: Path) -> None:
    done = forked(MAIN, command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 32
    examples = [line for line in lines if line.startswith(("  counterflow ", "  torchrun "))]
    assert len(examples) == 2


def test_help_survives_a_closed_pipe() -> None:
    command = f"{sys.executable} -m counterflow train --help | head -c 1; echo ${{PIPESTATUS[0]}}"
    closed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert (closed.stdout, closed.stderr) == ("T0\n", "")
