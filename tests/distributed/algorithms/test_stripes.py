"""An easy set on which every local rule must learn in every block: coloured stripes."""

import pytest
from torch import nn

import counterflow as cf
from tests.helpers.data import stripes
from tests.helpers.processes import Pool
from tests.helpers.ranks import on_ranks

RULES = {"al": cf.AL, "predsim": cf.PredSim, "bll": cf.BLL}


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(4, outputs), nn.ReLU())


def network() -> nn.Sequential:
    output = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    return nn.Sequential(block(3, 16, 1), block(16, 16, 2), block(16, 32, 2), output)


def fitted(rule: str) -> list[float | None]:
    """Test accuracy of every block after three epochs."""
    trainer = cf.Trainer(
        network,
        rule=RULES[rule](head=cf.HeadConfig(convolutions=1, width=16, dim=64)),
        optimizer=cf.AdamW(lr=1e-2),
        blocks=3,
        cut=[1, 1, 2],
        engine=cf.EngineConfig(threads=1, timeout=30),
    )
    accuracies = trainer.fit(stripes(1500, seed=0), stripes(500, seed=1), epochs=3).block_accuracy
    assert accuracies is not None
    return accuracies


@pytest.mark.parametrize("rule", RULES)
def test_every_block_tells_the_direction_of_stripes(pool: Pool, rule: str) -> None:
    accuracies = on_ranks(pool, 3, fitted, rule)[0]
    assert len(accuracies) == 3
    assert min(accuracies) > 0.95
