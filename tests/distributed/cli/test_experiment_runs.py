"""Every preset runs at its smallest scale, and two batches of the large ones. A sweep of one is in `test_sweep`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from counterflow.cli.train import run_job
from counterflow.config import TrainConfig
from counterflow.metrics.provenance import config_hash
from tests.helpers.presets import CHOICES, PRESETS, TABLES, jobs, of
from tests.helpers.processes import Pool

_done: set[tuple[str, str, int] | str] = set()
"""Kinds of runs, and hashes of whole smokes, that this process has seen: two presets may have the same."""


def run_smokes(rank: int, size: int, store_path: str, configs: list[TrainConfig]) -> None:
    """Run every ``size``-th configuration, each on this process alone."""
    for config in configs[rank::size]:
        run_job(config)


def run_and_check(preset: str, configs: Sequence[TrainConfig], steps: int, folder: Path, pool: Pool) -> None:
    paths = [folder / str(number) for number in range(len(configs))]
    runs = [
        replace(
            config,
            run=replace(config.run, dir=str(path), display=False),
            train=replace(config.train, steps=steps),
        )
        for path, config in zip(paths, configs, strict=True)
    ]
    pool.run(2, run_smokes, runs)
    for path in paths:
        summary = json.loads((path / "summary.json").read_text())
        assert (summary["experiment"], summary["scale"], summary["steps"]) == (preset, "smoke", steps)
        assert (summary["test_accuracy"] is None) == (preset in CHOICES)
        assert 0 <= summary["validation_accuracy"] <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_network_of_every_preset_runs_under_its_rules(preset: str, tmp_path: Path, pool: Pool) -> None:
    """Three batches of every network, rule and number of blocks that no preset before had; one at least."""
    chosen = []
    for job in jobs(preset, "smoke"):
        config = of(preset, "smoke", *job)
        kind = (config.model.name, config.algorithm.name, config.blocks)
        if not chosen or kind not in _done:
            chosen.append(config)
            _done.add(kind)
    run_and_check(preset, chosen, 3, tmp_path, pool)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_smoke_runs(preset: str, tmp_path: Path, pool: Pool) -> None:
    configs = [of(preset, "smoke", *job) for job in jobs(preset, "smoke")]
    configs = [config for config in configs if config_hash(config) not in _done]
    run_and_check(preset, configs, 10, tmp_path, pool)
    _done.update(map(config_hash, configs))


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
