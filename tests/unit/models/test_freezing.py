import re

import pytest
from torch import nn

from counterflow.models.freezing import freeze, train_unfrozen


def network() -> nn.Sequential:
    """Five entries, one of which comes twice, and a name."""
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(3, 3), relu, nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)), relu)
    network.add_module("head", nn.Linear(3, 2))
    return network


@pytest.mark.parametrize(
    ("layers", "names"), [([], set()), ([0, 2], {"0", "2"}), (["2", "head"], {"2", "head"}), ([4, "head"], {"head"})]
)
def test_by_index_and_by_name(layers: list[int | str], names: set[str]) -> None:
    frozen = network()
    assert freeze(frozen, layers) == names
    learn = {name.partition(".")[0] for name, p in frozen.named_parameters() if p.requires_grad}
    assert learn == {"0", "2", "head"} - names
    assert {name for name, layer in frozen.named_children() if not layer.training} == names


def test_frozen_layers_stay_in_evaluation_mode() -> None:
    frozen = network()
    freeze(frozen, [2])
    train_unfrozen(frozen.eval(), [frozen[2]])
    assert [name for name, module in frozen.named_modules() if not module.training] == ["2", "2.0", "2.1"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([5], "[5]: 5 is no layer, allowed are 0 to 4 and the names 0, 1, 2, 3, head"),
        (["tail"], "['tail']: tail is no layer, allowed are 0 to 4 and the names 0, 1, 2, 3, head"),
        ([0, 2, "head"], "[0, 2, 'head']: must leave a layer that learns"),
    ],
)
def test_refused(layers: list[int | str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'model.freeze={message}')}$"):
        freeze(network(), layers)
