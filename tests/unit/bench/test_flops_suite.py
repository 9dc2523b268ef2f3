"""What the suite counts is what the engine's own account says, and the goal of pooled heads holds."""

from pathlib import Path
from typing import Any

import pytest

from counterflow.bench.entrants import common, noise
from counterflow.bench.suites.flops import count
from counterflow.cli.hydra_app import load_config

CONF = Path(__file__).parents[3] / "conf"


class Alone:
    size = 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    noise(folder, 64, pixels=32, channels=3)
    return folder


def cost(data: Path, *options: str) -> Any:
    comm: Any = Alone()
    return count(comm, load_config(CONF, [*common(data, 32), "algorithm=bll", *options]))


def test_a_network_of_one_layer_by_hand(data: Path) -> None:
    options = ("model=cnn", "model.channels=[4]", "model.strides=[1]", "blocks=2", "algorithm.latent.convolutions=0")
    found = cost(data, *options)
    forward = 2 * 32 * 32 * 4 * 3 * 9 + 2 * 4 * 10
    assert found.forward == forward
    # the input needs no gradient; the output layer's input does
    assert found.backprop == forward + 2 * 32 * 32 * 4 * 3 * 9 + 2 * (2 * 4 * 10)
    assert found.learning > 0


def test_pooled_heads_cost_little_and_deeper_ones_more(data: Path) -> None:
    options = ("model=resnet20", "blocks=4")
    pooled, deep = (cost(data, *options, f"algorithm.latent.convolutions={n}") for n in (0, 3))
    assert pooled.backprop == deep.backprop
    assert pooled.learning / pooled.backprop - 1 <= 0.08
    assert deep.learning > pooled.learning
