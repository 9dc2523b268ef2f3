"""Every preset at every scale is a set of runs that make sense."""

from dataclasses import replace

import pytest

from counterflow.cli.hydra_app import job_name, load_config
from counterflow.config import SCALES
from tests.helpers.presets import CHOICES, PRESETS, TABLES, jobs, of, sweep


def test_there_is_a_preset_for_every_figure() -> None:
    figures = {"fig3a", "fig3b", "fig3c", "al_mnist", "al_cifar10", "al_cifar100", "al_layers", "al_distances"}
    assert TABLES | figures <= set(PRESETS)


@pytest.mark.parametrize(("preset", "scale"), [("al_layers", "full"), ("heads", "cpu"), ("table1", "smoke")])
def test_configurations_put_together_by_hand_are_those_of_the_command(preset: str, scale: str) -> None:
    *_, job = jobs(preset, scale)
    assert of(preset, scale, *job) == load_config([f"experiment={preset}", f"scale={scale}", *job])


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
        assert config.data.name in ("digits", "reverse", "stdlib")
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
