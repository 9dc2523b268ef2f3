import pytest
import torch
from torch import nn

from counterflow.config import MLPConfig
from counterflow.models import build


def kinds(layer: nn.Module) -> list[str]:
    return [type(module).__name__ for module in layer.modules() if not isinstance(module, nn.Sequential)]


@pytest.mark.parametrize(
    ("norm", "dropout", "expected"),
    [
        ("none", 0.0, ["Linear", "ReLU"]),
        ("layer", 0.0, ["Linear", "LayerNorm", "ReLU"]),
        ("batch", 0.3, ["Linear", "BatchNorm1d", "ReLU", "Dropout"]),
    ],
)
def test_layers(norm: str, dropout: float, expected: list[str]) -> None:
    network = build(MLPConfig(hidden=3, width=16, norm=norm, dropout=dropout), (2, 3, 5), 10, seed=0)
    assert [kinds(layer) for layer in network] == [["Flatten", *expected], expected, expected, ["Linear"]]
    assert all(m.p == dropout for m in network.modules() if isinstance(m, nn.Dropout))


def test_widths() -> None:
    network = build(MLPConfig(hidden=3, width=16), (2, 3, 5), 10, seed=0)
    widths = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert widths == [(30, 16), (16, 16), (16, 16), (16, 10)]


def test_one_hidden_layer_is_linear_norm_relu_linear() -> None:
    network = build(MLPConfig(hidden=1, width=8, norm="layer"), (1, 4, 4), 3, seed=0)
    x = torch.randn(5, 1, 4, 4)
    (_, first, norm, _), last = network[0], network[1]
    hidden = nn.functional.layer_norm(x.reshape(5, 16) @ first.weight.T + first.bias, (8,), norm.weight, norm.bias)
    torch.testing.assert_close(network(x), hidden.clamp(min=0) @ last.weight.T + last.bias)


def test_no_bias_where_batch_norm_cancels_it() -> None:
    def biases(norm: str) -> list[bool]:
        network = build(MLPConfig(hidden=2, norm=norm), (1, 4, 4), 3, seed=0)
        return [m.bias is not None for m in network.modules() if isinstance(m, nn.Linear)]

    assert biases("batch") == [False, False, True]
    assert biases("layer") == biases("none") == [True, True, True]
