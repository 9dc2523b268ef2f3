"""The presets of ``conf/experiment``, and the runs that each stands for."""

from collections.abc import Iterator
from functools import cache
from itertools import product

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from counterflow.cli.hydra_app import load_config
from counterflow.config import TrainConfig
from tests.helpers.processes import CONF

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
