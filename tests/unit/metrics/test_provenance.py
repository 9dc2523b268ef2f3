import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from counterflow.metrics.provenance import (
    affects_result,
    config_hash,
    git_commit,
    group_hash,
    hardware,
    settings,
    torchvision_version,
    versions,
)
from tests.helpers.configs import configured

PRESET = "experiment=fashion_mnist"


def hashes(*overrides: str) -> tuple[str, str]:
    config = configured(PRESET, *overrides)
    return config_hash(config), group_hash(config)


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=here",
        "run.display=false",
        "engine.depth=9",
        "engine.target_depth=9",
        "engine.timeout=9",
        "engine.backend=gloo",
        "train.log_every=9",
        "data.root=there",
        "data.download=true",
    ],
)
def test_what_cannot_change_the_result_does_not_count(override: str) -> None:
    assert hashes(override) == hashes()


@pytest.mark.parametrize(
    "override",
    ["blocks=2", "engine.lag=3", "engine.threads=1", "algorithm.feedback.lr_scale=0.5", "model.cut=parameters"],
)
def test_everything_else_counts(override: str) -> None:
    config, group = hashes(override)
    assert config != hashes()[0]
    assert group != hashes()[1]


def test_a_scale_is_the_values_it_chooses() -> None:
    assert hashes("scale=cpu") == hashes("scale=full") != hashes("scale=smoke")


def test_seeds_are_one_group() -> None:
    first, second = hashes("seed=1"), hashes("seed=2")
    assert first[0] != second[0]
    assert first[1] == second[1]
    assert first[0] != first[1]
    assert re.fullmatch("[0-9a-f]{16}", first[0])


def test_the_file_of_a_configuration_counts_as_itself() -> None:
    config = configured(PRESET, "model.cut=[1,2,3,1]", "optimizer.lr=1e-5")
    there: Any = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    assert settings(there) == settings(config)
    assert config_hash(there) == config_hash(config)
    assert settings(config)["model.cut"] == [1, 2, 3, 1]


def test_the_machine_is_named() -> None:
    assert re.fullmatch(r"\S.*, \d+ cores", hardware(torch.device("cpu")))


def test_torchvision_is_asked_without_importing_it() -> None:
    import torchvision

    assert str(torchvision.__version__).startswith(torchvision_version() or "none")


def test_the_commit_is_that_of_the_source_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = git_commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
    if (Path(__file__).parents[3] / ".git").exists():
        assert found is not None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_keys_are_told_apart_by_whether_they_count() -> None:
    counted = ("seed", "model.width", "engine.lag", "scaled", "engine.depths")
    others = ("scale", "trace", "run.dir", "checkpoint.every", "engine.depth", "engine.recovery", "engine.replay")
    others += ("engine.secret_file",)
    assert all(map(affects_result, counted))
    assert not any(map(affects_result, others))


def test_a_plain_mapping_has_settings_too() -> None:
    config = {"rule": {"name": "mine", "sizes": (1, 2)}, "seed": 3, "run": {"dir": "here"}, "trace": True}
    assert settings(config) == {"rule.name": "mine", "rule.sizes": [1, 2], "seed": 3}


def test_versions_are_those_that_may_round_differently() -> None:
    found = versions(torch.device("cpu"))
    assert set(found) == {"counterflow", "python", "torch", "torchvision", "hardware"}
    assert found["torch"] == torch.__version__


def test_any_number_of_workers_counts_as_one() -> None:
    assert hashes("data.workers=1") == hashes("data.workers=3") != hashes("data.workers=0")
    assert "data.workers" not in settings(configured(PRESET)), "runs of before had no such key"
