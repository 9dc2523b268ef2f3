"""Configurations without a composition of hydra's for each, which takes a tenth of a second."""

from functools import cache

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from counterflow.cli.hydra_app import validate
from counterflow.config import TrainConfig
from tests.helpers.processes import CONF

GROUPS = ("algorithm", "model", "data", "optimizer", "experiment", "scale")


@cache
def _composed(*choices: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(choices))


def configured(*overrides: str) -> TrainConfig:
    """The configuration that `load_config` makes of overrides of the forms ``group=name`` and ``key.or.path=value``.

    Choices of groups are composed once for all calls, and values set on a copy. Only `load_config` reads all that hydra
    does, and refuses in its words what has a wrong name or type.
    """
    choices = [override for override in overrides if override.split("=")[0] in GROUPS]
    values = [override for override in overrides if override not in choices]
    merged = OmegaConf.merge(_composed(*choices), OmegaConf.from_dotlist(values))
    assert isinstance(merged, DictConfig)
    return validate(merged, TrainConfig)
