"""From a folder of YAML files and overrides to a checked configuration."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from counterflow.algorithms import ALGORITHMS
from counterflow.config import TrainConfig, register

register(algorithm.Config for algorithm in ALGORITHMS.values())


def configure(conf: Path, overrides: Sequence[str]) -> TrainConfig:
    """The checked configuration of ``conf/train.yaml`` with ``overrides``. ``ValueError`` of one line otherwise."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            config = OmegaConf.to_object(compose("train", list(overrides)))
    except MissingConfigException as error:
        options = [o for o in error.options or () if not o.endswith("schema")]
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        raise ValueError(f"{group}={choice}: allowed are {', '.join(options)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from error
    assert isinstance(config, TrainConfig)
    return config


def _one_line(error: BaseException) -> str:
    """Hydra's first line says which override it was; the first line of its cause says why."""
    lines = [str(e).strip().splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e).strip()]
    return ": ".join(dict.fromkeys(lines))
