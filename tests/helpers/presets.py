"""The presets of ``conf/experiment``, and the runs that each stands for."""

from collections.abc import Iterator
from functools import cache
from itertools import product

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from counterflow.cli.hydra_app import validate
from counterflow.config import TrainConfig
from tests.helpers.processes import CONF

PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TABLES = {"table1", "table1_resnet50", "table1_cifar10"}
GROUPS = {"algorithm", "model", "data", "optimizer"}
CHOICES = {"cifar10_tuning", "heads"}
"""Presets that choose between settings, on held out data."""


@cache
def _composed(preset: str, *choices: str) -> DictConfig:
    """Configuration as hydra composes it, with its own part under ``hydra``; not checked, nothing resolved."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [f"experiment={preset}", *choices], return_hydra_config=True)


def _with(preset: str, scale: str, *overrides: str) -> DictConfig:
    """`_composed`, with the values of ``overrides`` put in as hydra does it after it has chosen the files.

    So the files are composed once for all values and scales: that takes ten times as long as the rest.
    """
    groups = [override for override in overrides if override.split("=")[0] in GROUPS]
    composed = _composed(preset, *groups).copy()
    for override in OverridesParser.create().parse_overrides([f"scale={scale}", *overrides]):
        if override.input_line not in groups:
            OmegaConf.update(composed, override.key_or_group, override.value())
    return composed


@cache
def sweep(preset: str, scale: str) -> dict[str, list[str]]:
    """Overrides that hydra sweeps over if the command names only the preset and the scale."""
    composed = _with(preset, scale)
    params = composed.hydra.sweeper.params if composed.hydra.mode is RunMode.MULTIRUN else {}
    return {str(key): str(value).split(",") for key, value in params.items()}


def jobs(preset: str, scale: str) -> Iterator[tuple[str, ...]]:
    """The overrides of every job with the first seed: what a seed can make wrong is not a matter of presets."""
    params = {key: values[:1] if key == "seed" else values for key, values in sweep(preset, scale).items()}
    for values in product(*params.values()):
        yield tuple(f"{key}={value}" for key, value in zip(params, values, strict=True))


@cache
def of(preset: str, scale: str, *job: str) -> TrainConfig:
    """The configuration of one job, as `load_config` with ``scale=`` gives it."""
    composed = _with(preset, scale, *job)
    with open_dict(composed):
        del composed.hydra
    return validate(composed, TrainConfig)
