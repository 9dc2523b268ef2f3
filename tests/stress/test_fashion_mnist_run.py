"""The preset on real data, beside backprop with the same network, order, optimizer and budget."""

import json
from pathlib import Path

import pytest

from counterflow.cli.hydra_app import load_config
from counterflow.trainer.job_builder import load_job
from tests.helpers.backprop import accuracy_of_backprop
from tests.helpers.launch import torchrun

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PRESET = ("experiment=fashion_mnist", f"data.root={DEBIAN}")


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"needs {DEBIAN}, from Debian's package dataset-fashion-mnist")
def test_the_preset_is_near_backprop(tmp_path: Path) -> None:
    done = torchrun(4, *PRESET, "run.dir=here", cwd=tmp_path, seconds=1800)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    backprop = accuracy_of_backprop(load_job(load_config([*PRESET, "engine.threads=2"])))
    print(f"BLL {summary['test_accuracy']:.4f}, blocks {summary['block_accuracy']}, backprop {backprop:.4f}")
    print(f"wait fraction of each rank {summary['wait_fraction']}, {summary['samples_per_second']:.0f} samples/s")
    assert summary["test_accuracy"] > 0.88
    assert backprop - summary["test_accuracy"] < 0.03
