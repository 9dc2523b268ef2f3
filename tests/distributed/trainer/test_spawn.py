"""`counterflow.spawn`: ranks from a script, from a function without a file, and their failures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import counterflow as cf

SCRIPT = """
import torch
from torch import nn
import counterflow as cf

def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

def main(factor):
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    trainer = cf.Trainer(network, blocks=4, engine=cf.EngineConfig(threads=1, timeout=30))
    return trainer.fit((factor * x, y), (x, y), epochs=2, batch_size=16).fingerprint

print(main(2.0), cf.spawn(main, 2.0, ranks=2))
"""


def test_a_function_without_a_file_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    """As in a notebook: nothing can be imported by name."""
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=110, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    alone, two = done.stdout.split()
    assert alone == two
    assert not list(tmp_path.iterdir())


def fail(bad: int) -> None:
    rank = int(os.environ["RANK"])
    if rank == bad:
        raise ValueError("on\npurpose")


def test_the_rank_that_failed_is_named() -> None:
    with pytest.raises(cf.SpawnError, match=r"^rank 1: ValueError: on purpose$"):
        cf.spawn(fail, 1, ranks=2)


def die() -> None:
    os._exit(7)


def test_a_process_that_ends_by_itself_is_named() -> None:
    with pytest.raises(cf.SpawnError, match=r"^rank 0: ended with status 7$"):
        cf.spawn(die, ranks=1)


def test_values_that_cannot_travel_are_left_out() -> None:
    assert cf.spawn(lambda: lambda: 1, ranks=1) is None


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ranks=0: must be at least 1"):
        cf.spawn(die, ranks=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="already one of WORLD_SIZE=2 ranks"):
        cf.spawn(die, ranks=2)
