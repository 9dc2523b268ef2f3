"""The README's example of a rule does what the README says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.launch import ROOT, start

README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return str(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository with the example's two files in it."""
    for folder in ("src", "conf", "launch"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "src" / "counterflow" / "algorithms" / "readout.py").write_text(block("python"))
    (tmp_path / "conf" / "algorithm" / "readout.yaml").write_text(block("yaml"))
    return tmp_path


def test_the_example_is_about_sixty_lines() -> None:
    assert len(block("python").splitlines()) <= 65


def test_the_rule_runs_on_two_processes_and_gives_the_bits_of_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(copy / "src"))
    program = str(copy / "launch" / "train.py")
    options = ("algorithm=readout", "algorithm.smoothing=0.1", "train.steps=220")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2")
    for name, prefix in (("one", ()), ("two", launcher)):
        done = start(*prefix, program, *options, f"run.dir={name}", cwd=copy)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((copy / name / "summary.json").read_text()) for name in ("one", "two"))
    assert one["algorithm"] == "readout"
    assert one["fingerprint"] == two["fingerprint"]
    assert min(one["block_accuracy"]) > 0.9
