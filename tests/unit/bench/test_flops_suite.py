"""FLOPs of the suite ``flops``, compared with sums by hand, and the goal of pooled heads."""

from typing import Any

import pytest

from counterflow.bench.case import count_flops
from counterflow.bench.cases import CaseFactory


class OneRank:
    size = 1


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> CaseFactory:
    factory = CaseFactory(tmp_path_factory.mktemp("images"))
    factory.write_images(64, pixels=32, channels=3)
    return factory


def cost(cases: CaseFactory, *options: str) -> Any:
    comm: Any = OneRank()
    return count_flops(comm, cases.config(32, ["algorithm=bll", *options]))


def test_a_network_of_one_layer_by_hand(cases: CaseFactory) -> None:
    options = ("model=cnn", "model.channels=[4]", "model.strides=[1]", "blocks=2", "algorithm.head.convolutions=0")
    flops = cost(cases, *options)
    forward = 2 * 32 * 32 * 4 * 3 * 9 + 2 * 4 * 10
    assert flops.forward == forward
    # the input needs no gradient; the output layer's input does
    assert flops.backprop == forward + 2 * 32 * 32 * 4 * 3 * 9 + 2 * (2 * 4 * 10)
    assert flops.learning > 0


def test_pooled_heads_cost_little_and_deeper_ones_more(cases: CaseFactory) -> None:
    options = ("model=resnet20", "blocks=4")
    pooled, deep = (cost(cases, *options, f"algorithm.head.convolutions={n}") for n in (0, 3))
    assert pooled.backprop == deep.backprop
    assert pooled.learning / pooled.backprop - 1 <= 0.08
    assert deep.learning > pooled.learning
