"""Every preset at every scale is a set of runs that make sense, and at the smallest one they run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from counterflow.cli.hydra_app import job_name, load_config
from counterflow.cli.train import run_job
from counterflow.config import SCALES, TrainConfig
from counterflow.metrics.provenance import config_hash
from tests.helpers.processes import CONF, Pool

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TABLES = {"table1", "table1_resnet50", "table1_cifar10"}
CHOICES = {"heads"}
"""Presets that choose between settings, on held out data."""


@cache
def sweep(preset: str, scale: str) -> dict[str, list[str]]:
    """Overrides that hydra sweeps over if the command names only the preset and the scale."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("train", [f"experiment={preset}", f"scale={scale}"], return_hydra_config=True)
        params = composed.hydra.sweeper.params if composed.hydra.mode is RunMode.MULTIRUN else {}
        return {str(key): str(value).split(",") for key, value in params.items()}


def jobs(preset: str, scale: str) -> Iterator[tuple[str, ...]]:
    """The overrides of every job with the first seed: what a seed can make wrong is not a matter of presets."""
    params = {key: values[:1] if key == "seed" else values for key, values in sweep(preset, scale).items()}
    for values in product(*params.values()):
        yield tuple(f"{key}={value}" for key, value in zip(params, values, strict=True))


@cache
def of(preset: str, scale: str, *job: str) -> TrainConfig:
    return load_config([f"experiment={preset}", f"scale={scale}", *job])


def test_there_is_a_preset_for_every_figure() -> None:
    figures = {"fig3a", "fig3b", "fig3c", "al_mnist", "al_cifar10", "al_cifar100", "al_layers", "al_distances"}
    assert TABLES | figures <= set(PRESETS)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_run_of_every_preset_makes_sense(preset: str, scale: str) -> None:
    names = []
    for job in jobs(preset, scale):
        config = of(preset, scale, *job)
        assert (config.run.experiment, config.scale) == (preset, scale)
        assert config.train.test == (preset not in CHOICES), "what is reported is tested, what chooses never sees it"
        once = not config.train.evaluate_every or config.data.validation > 0
        assert once, "test data would be looked at more than once"
        names.append(job_name(job))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("preset", PRESETS)
def test_smokes_need_no_download_and_one_seed(preset: str) -> None:
    for job in jobs(preset, "smoke"):
        config = of(preset, "smoke", *job)
        assert config.data.name in ("digits", "reverse")
        assert config.train.steps == 10
        assert config.seed == 1


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"fashion_mnist"} - CHOICES))
def test_results_have_seeds(preset: str) -> None:
    assert sweep(preset, "full")["seed"] == ["1", "2", "3"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", sorted(TABLES))
def test_table_1_gives_every_rule_the_same_budget(preset: str, scale: str) -> None:
    params = sweep(preset, scale)
    assert params["algorithm"] == ["bp", "fa", "predsim", "al", "bll"]
    configs = [of(preset, scale, f"algorithm={algorithm}", "seed=1") for algorithm in params["algorithm"]]
    parts = [(c.model, c.data, replace(c.optimizer, lr=0, warmup=0), c.train, c.engine, c.blocks) for c in configs]
    assert all(part == parts[0] for part in parts)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("table1", ["blocks=8", "algorithm=bll"]),
        ("fig3a", ["blocks=1", "algorithm=bp"]),
        ("fig3c", ["blocks=1", "algorithm=bp"]),
        ("al_mnist", ["blocks=2", "algorithm=al", "model=al_mlp", "model.hidden=2"]),
        ("al_cifar10", ["model=al_mlp", "model.width=3000"]),
        ("al_layers", ["blocks=1", "algorithm=bp"]),
    ],
)
def test_the_second_commands_of_the_presets_make_sense(preset: str, overrides: list[str]) -> None:
    for scale in ("smoke", "full"):
        of(preset, scale, *overrides)


def test_what_is_published_is_what_full_builds() -> None:
    configs = {preset: of(preset, "full", *next(jobs(preset, "full"))) for preset in PRESETS}
    shapes = {
        preset: (c.model.name, c.data.name, c.model.stages, c.model.width, c.model.stride)  # type: ignore[attr-defined]
        for preset, c in configs.items()
        if c.model.name.startswith("resnet")
    }
    assert shapes["table1"] == ("resnet18", "fashion_mnist", [2, 2, 2, 2], 64, 1)
    assert shapes["table1_resnet50"] == ("resnet50", "fashion_mnist", [3, 4, 6, 3], 64, 1)
    assert shapes["table1_cifar10"] == shapes["fig3a"] == ("resnet50", "cifar10", [3, 4, 6, 3], 64, 1)
    assert shapes["al_cifar10_resnet"] == ("resnet20", "cifar10", [3, 3, 3], 16, 1)
    assert shapes["al_cifar100_resnet"] == ("resnet20", "cifar100", [3, 3, 3], 16, 1)
    assert {c.data.limit for c in configs.values()} == {None}
    for preset in ("fig3b", "fig3c"):
        assert configs[preset].model.layers == 20  # type: ignore[attr-defined]
        assert configs[preset].data.name == "reverse"
    assert configs["fig3b"].blocks == max(map(int, sweep("fig3c", "full")["blocks"])) == 20


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
