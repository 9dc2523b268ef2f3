"""Every preset runs at its smallest scale, and two batches of the large ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.cli.hydra_app import job_name
from counterflow.cli.train import run_job
from counterflow.config import TrainConfig
from counterflow.metrics.provenance import config_hash
from tests.helpers.presets import CHOICES, PRESETS, TABLES, jobs, of
from tests.helpers.processes import Pool

_done: set[str] = set()
"""Hashes of what has run: the smokes of two presets that differ in their data set alone are the same runs."""


def run_smokes(rank: int, size: int, store_path: str, configs: list[TrainConfig]) -> None:
    """Run every ``size``-th configuration, each on this process alone."""
    for config in configs[rank::size]:
        run_job(config)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_smoke_runs(preset: str, tmp_path: Path, pool: Pool) -> None:
    runs: dict[Path, TrainConfig] = {}
    for job in jobs(preset, "smoke"):
        config = of(preset, "smoke", *job)
        if config_hash(config) not in _done:
            path = tmp_path / job_name(job)
            runs[path] = replace(config, run=replace(config.run, dir=str(path), display=False))
    pool.run(2, run_smokes, list(runs.values()))
    for path, config in runs.items():
        summary = json.loads((path / "summary.json").read_text())
        assert (summary["experiment"], summary["scale"], summary["steps"]) == (preset, "smoke", 10)
        assert (summary["test_accuracy"] is None) == (preset in CHOICES)
        assert 0 <= summary["validation_accuracy"] <= 1
        _done.add(config_hash(config))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("algorithm", ["bp", "fa", "predsim", "al", "bll"])
@pytest.mark.parametrize("preset", [*sorted(TABLES), "fig3a"])
def test_full_scale_runs_two_batches_on_a_cpu(preset: str, algorithm: str, tmp_path: Path) -> None:
    """The network and the numerics of the full size; of the data, digits stand in for what has to be downloaded."""
    few = ("data.name=digits", "data.limit=64", "train.steps=2", "train.batch_size=8", "device=cpu", "seed=1")
    config = of(preset, "full", *few, f"algorithm={algorithm}", f"run.dir={tmp_path}", "run.display=false")
    assert config.engine.precision == "bf16"
    run_job(config)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["precision"], summary["scale"]) == (2, "bf16", "full")
